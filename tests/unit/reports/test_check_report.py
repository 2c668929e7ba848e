"""Over all cases: how well the scores hold, and which kinds of layers and pairs they misrank."""

import pytest
from builders import results_of, with_case_names, with_check
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.page.contents import contents
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.terminal_report import terminal_lines

HEADLINE = (
    "toy, gradient, 2 cases: Spearman of score and measured KL 0.7500 in the median, at least "
    "0.5000 (wint4_aint8, default, small)"
)


@pytest.fixture
def results(manifest):
    """One case in the order of its scores and one with two groups swapped; one was not checked.

    Attention, output and mlp score 3, 1 and 6.
    """
    swapped = with_check(with_case_names(manifest, granularity="default"), [1.0, 2.0, 4.0])
    same = with_check(with_case_names(manifest, granularity="w_group64"), [3.0, 1.0, 6.0])
    unchecked = with_case_names(manifest, granularity="w_per_tensor")
    alias = with_case_names(swapped, granularity="w_group128", status="alias", alias_of="x")
    return results_of(*map(case_result_of, (swapped, same, unchecked, alias)))


def test_summary_names_the_least_case_and_what_is_misranked_most(render, results):
    (check,) = report_model(results).checks
    assert check.correlations == (0.5, 1.0)
    assert check.sentence == (
        f"{HEADLINE}; lowest median by pair: wint4_aint8 0.7500; mean difference of ranks by kind "
        "of layer: self_attn.{q,k,v}_proj 0.5 (overrated by 0.5), self_attn.o_proj 0.5 "
        "(underrated by 0.5), mlp.{gate,up}_proj 0.0 (overrated by 0.0)."
    )
    page = render(summary_markdown(report_model(results)))
    assert check.sentence in page.text
    cases = next(rows for rows in page.tables if "Spearman with KL" in rows[0])
    place = cases[0].index("Spearman with KL")
    assert {row[1]: row[place] for row in cases[1:]} == {
        "default": "0.5000",
        "w_group64": "1.0000",
        "w_per_tensor": "",
    }
    assert f"  check  {HEADLINE}" in terminal_lines(results)


def test_without_a_checked_case_nothing_is_said(render, manifest):
    results = results_of(case_result_of(manifest))
    page = render(summary_markdown(report_model(results)))
    assert "Spearman with KL" not in page.text
    assert not [line for line in terminal_lines(results) if line.startswith("  check")]


def test_page_has_the_divergences_in_module_order(results):
    shown = contents(report_model(results))
    scores = {case.granularity: shown.score_sets[case.scores] for case in shown.cases}
    found = scores["default"]
    assert (found.kl, found.kl_errors, found.kl_ranks) == ("1 2 4", "0.01 0.01 0.01", "3 2 1")
    unchecked = scores["w_per_tensor"]
    assert (unchecked.kl, unchecked.kl_errors, unchecked.kl_ranks) == ("", "", "")
    sentences = {case.granularity: case.check for case in shown.cases}
    assert sentences["default"].startswith("Spearman 0.5000 between the score")
    assert sentences["w_per_tensor"] == ""
