"""Cases that were scored by several methods in one folder: no score of one stands for another."""

from dataclasses import replace
from html import unescape

import pytest
from builders import results_of, with_case_names, with_check, with_scores
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.reports.markdown.comparison_report import compare_markdown
from pytest_autoquant.reports.markdown.elements import METHOD_MEANS, RANKS_MEAN
from pytest_autoquant.reports.markdown.scheme.report import agreement_sentence, schemes_markdown
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.run_comparison import compare_runs
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.terminal_report import terminal_lines
from pytest_autoquant.reports.write import write_case

GROUPS = ("layers.0.attn", "layers.0.mlp")


@pytest.fixture
def case(manifest):
    """Make a manifest of a method from the scores of two groups and their divergences."""

    def make(method, scores, kl=None, **names):
        made = with_scores(manifest, dict(zip(GROUPS, scores, strict=True)))
        made = with_case_names(made, method=method, **names)
        return made if kl is None else with_check(made, kl)

    return make


@pytest.fixture
def mixed(case):
    """Two methods that rank the groups of two granularities otherwise."""
    return results_of(
        *map(
            case_result_of,
            (
                case("gradient", [9.0, 1.0], [2.0, 1.0], granularity="default"),
                case("gradient", [4.0, 1.0], [2.0, 1.0], granularity="w_group64"),
                case("fisher", [1.0, 4.0], [2.0, 1.0], granularity="default"),
                case("fisher", [1.0, 1.5], [2.0, 1.0], granularity="w_group64"),
            ),
        )
    )


@pytest.mark.parametrize("method", METHOD_MEANS)
def test_a_folder_of_one_method_begins_with_what_its_scores_mean(render, case, method):
    model = report_model(results_of(case_result_of(case(method, [1.0, 2.0]))))
    assert model.introduction == f"{METHOD_MEANS[method]} {RANKS_MEAN}"
    for shown in (render(summary_markdown(model)).text, unescape(render_page(model))):
        said = [name for name, means in METHOD_MEANS.items() if means[:60] in shown]
        assert said == [method]


def test_each_method_is_introduced_ranked_checked_and_sorted_for_itself(render, mixed):
    model = report_model(mixed)
    assert model.introduction == (
        f"By gradient: {METHOD_MEANS['gradient']} By fisher: {METHOD_MEANS['fisher']} Scores of "
        f"different methods do not compare. {RANKS_MEAN}"
    )
    assert [(ranking.method, ranking.groups[0][0]) for ranking in model.sensitive] == [
        ("fisher", "layers.0.mlp"),
        ("gradient", "layers.0.attn"),
    ]
    assert [(check.method, check.correlations) for check in model.checks] == [
        ("fisher", (-1.0, -1.0)),
        ("gradient", (1.0, 1.0)),
    ]
    page = render(summary_markdown(model))
    cases = next(rows for rows in page.tables if "total score" in rows[0])
    columns = [cases[0].index(name) for name in ("method", "granularity", "total score")]
    assert [[row[column] for column in columns] for row in cases[1:]] == [
        ["fisher", "w_group64", "2.5 *"],
        ["fisher", "default", "5"],
        ["gradient", "w_group64", "5 *"],
        ["gradient", "default", "10"],
    ]
    lines = terminal_lines(mixed)
    assert [line for line in lines if line.startswith("  toy")] == [
        "  toy, fisher:",
        "  toy, gradient:",
    ]


def test_comparison_of_two_methods_shows_ranks_and_no_drift(tmp_path, render, case):
    for name, method in (("a", "gradient"), ("b", "fisher")):
        write_case(tmp_path / name, case(method, [3.0, 1.0]))
    paths = [next((tmp_path / name).rglob("*_manifest.json")) for name in "ab"]
    page = render(compare_markdown(compare_runs(*paths)))
    row = dict(zip(*page.tables[0], strict=True))
    assert (row["total score"], row["largest group drift"], row["beyond noise"]) == (
        "n/a",
        "n/a",
        "unknown",
    )
    assert row["rank corr."] == "1.0000"
    assert [line[3] for line in page.tables[1][1:]] == ["n/a", "n/a"]
    assert "Scored by gradient, then by fisher" in page.text
    assert "Measured on something else" not in page.text


def test_scheme_names_the_method_of_its_scores_and_predictions_are_not_mixed(render, derived):
    """Two schemes by each method; predictions of fisher are on another scale."""
    found = {}
    for method, scale in (("gradient", 1.0), ("fisher", 10.0)):
        for name, kl in (("half", 0.5), ("whole", 1.0)):
            found[f"{method} {name}"] = replace(
                derived,
                case_id=f"toy/schemes/{method}_{name}/small",
                scheme=replace(derived.scheme, name=f"{method}_{name}", method=method),
                allocation=replace(derived.allocation, score=kl * scale),
                measured=replace(derived.measured, kl=kl),
                notes=("4 of 8 captions also calibrate",) if name == "half" else (),
            )
    assert agreement_sentence(found) == (
        "toy, small, gradient: Spearman rank correlation of predicted score and measured KL 1.0000 "
        "over 2 schemes. toy, small, fisher: Spearman rank correlation of predicted score and "
        "measured KL 1.0000 over 2 schemes."
    )
    text = render(schemes_markdown(found)).text
    assert text.count("Scores are by gradient.") == text.count("Scores are by fisher.") == 2
    page = render_page(report_model(SessionResults(schemes=found)))
    assert page.count("</code>, toy, small: 4 of 8 captions also calibrate</li>") == 2
    assert f"By fisher: {METHOD_MEANS['fisher']}" in unescape(page)
