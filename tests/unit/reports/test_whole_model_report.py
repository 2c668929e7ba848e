"""Whole configurations: the sum of the scores beside the KL divergence that was measured."""

from dataclasses import replace

import pytest
from builders import results_of, with_case_names, with_whole
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.regression.comparison import compare
from pytest_autoquant.reports.charts.grid import View, grid_cells
from pytest_autoquant.reports.charts.pareto import measured_frontier
from pytest_autoquant.reports.markdown.case_report import layer_report_markdown
from pytest_autoquant.reports.markdown.comparison_report import compare_markdown, kl_drift_shown
from pytest_autoquant.reports.markdown.elements import WHOLE_MEANS
from pytest_autoquant.reports.markdown.session.record import session_summary
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.markdown.whole_model_report import measured_orders, whole_sentence
from pytest_autoquant.reports.page.contents import contents
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.run_comparison import compare_runs
from pytest_autoquant.reports.write import write_case
from pytest_autoquant.scoring.engine import GroupScore
from pytest_autoquant.scoring.manifest.build_manifest import build_manifest

VIEW = View(model="toy", method="gradient", size="small")


@pytest.fixture
def built(findings, measurement):
    """Build a case with error bars; each of its three groups scores the same by caption."""

    def build(granularity, per_caption, caption_kl=None, **ratio):
        groups = tuple(
            GroupScore(
                modules=group.modules,
                score=sum(per_caption),
                quantized=True,
                per_caption=tuple(per_caption),
            )
            for group in measurement.groups
        )
        manifest = build_manifest(
            replace(findings, measurement=replace(measurement, groups=groups))
        )
        named = with_case_names(manifest, granularity=granularity)
        return named if caption_kl is None else with_whole(named, caption_kl, **ratio)

    return build


@pytest.fixture
def manifests(built):
    """Ten predictions: total scores 3, 4.5 and 30, measured KL 2, 1 and 10 per token."""
    return [
        built("default", [3.0, 3.0, 4.0], [6.0, 6.0, 8.0]),
        built("w_group64", [4.5, 4.5, 6.0], [3.0, 3.0, 4.0]),
        built("w_per_tensor", [30.0, 30.0, 40.0], [30.0, 30.0, 40.0]),
    ]


@pytest.fixture
def results(manifests):
    return results_of(*map(case_result_of, manifests))


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (
            {"score_per_kl": 1.5, "ratio_standard_error": 0.25},
            "The sum of the groups' scores is 1.5 ± 0.2 times that; a score has another unit, so "
            "the factor compares configurations and does not tell whether damages add up.",
        ),
        (
            {"interaction_ratio": 1.25},
            "It is 1.25 times the sum of the groups' divergences: 1 where damages add up, more "
            "where they reinforce each other, less where they cancel.",
        ),
        ({}, ""),
    ],
    ids=["gradient", "kl_div", "no ratio"],
)
def test_ratio_is_said_in_the_words_of_its_unit(render, built, ratio, said):
    manifest = built("default", [3.0, 3.0, 4.0], [6.0, 6.0], **ratio)
    case = case_result_of(manifest)
    tokens = sum(case.scored.predictions[:2])
    measured = (
        f"Measured KL with every group quantized: {12 / tokens:.4g} ± 0.25 nats per token, on the "
        f"first 2 captions of 3 that are scored ({tokens} tokens)."
    )
    assert whole_sentence(case) == f"{measured} {said}".strip()
    assert whole_sentence(case) in render(layer_report_markdown(manifest, case)).text


def test_case_without_a_measurement_says_why_and_an_older_one_nothing(manifest):
    reason = replace(case_result_of(manifest), whole_not_measured="switched off")
    assert whole_sentence(reason) == "Whole model not measured: switched off."
    assert whole_sentence(case_result_of(manifest)) == ""


def test_sum_that_contradicts_the_measurement_is_said_with_the_worst_pair(render, results):
    """The sum puts the first case before the second; the measured KL is twice as large."""
    (order,) = measured_orders(results.cases.values())
    assert (order.pairs, order.apart) == (3, 1)
    assert order.sentence == (
        "toy, small, gradient: of 3 pairs of cases that both tell apart beyond their error bars, "
        "the sum of the scores and the measured KL order 1 otherwise. The worst: wint4_aint8 "
        "default has a lower sum than wint4_aint8 w_group64 (3 against 4.5) and a higher KL (2 "
        "against 1)."
    )
    assert order.sentence in render(summary_markdown(report_model(results))).text


def test_difference_within_error_bars_contradicts_nothing(built):
    """The captions tell neither the sums of the first two nor their divergences apart."""
    noisy = [
        built("default", [9.0, 1.0, 2.0], [9.0, 1.0, 1.0]),
        built("w_group64", [1.0, 9.0, 3.0], [1.0, 9.0, 0.5]),
        built("w_per_tensor", [900.0, 900.0, 1200.0], [900.0, 900.0, 1200.0]),
    ]
    (order,) = measured_orders(map(case_result_of, noisy))
    assert (order.pairs, order.apart) == (2, 0)
    assert order.sentence == (
        "toy, small, gradient: the sum of the scores and the measured KL order alike all 2 pairs "
        "of cases that both tell apart beyond their error bars."
    )


def test_half_of_a_fisher_score_estimates_kl_so_the_ratio_is_compared_with_2(built):
    manifest = built("default", [3.0, 3.0, 4.0], [6.0, 6.0], score_per_kl=2.25)
    case = case_result_of(with_case_names(manifest, method="fisher"))
    assert whole_sentence(case).endswith(
        "The sum of the groups' scores is 2.25 times that; half of a score estimates the KL of its "
        "group, so the factor is 2 where the estimates hold and damages add up."
    )


def test_cases_are_sorted_by_measured_kl_where_every_case_has_one(render, results, manifests):
    def order(found):
        table = render(summary_markdown(report_model(found))).tables[1]
        return [row[1] for row in table[1:]]

    assert order(results) == ["w_group64", "default", "w_per_tensor"]
    unmeasured = [replace(manifest, whole_model=None) for manifest in manifests[:1]]
    some = results_of(*map(case_result_of, (*unmeasured, *manifests[1:])))
    assert order(some) == ["default", "w_group64", "w_per_tensor"]


def test_measured_kl_is_explained_where_no_two_cases_are_told_apart(render, manifests):
    model = report_model(results_of(case_result_of(manifests[0])))
    assert model.orders == ()
    for shown in (render(summary_markdown(model)).text, render_page(model)):
        assert WHOLE_MEANS in shown


def test_only_cases_of_one_view_are_compared(manifests):
    first, second, third = manifests
    other = with_case_names(second, size="large")
    unmeasured = replace(third, whole_model=None)
    assert measured_orders(map(case_result_of, (first, other, unmeasured))) == ()


def test_tables_have_a_column_and_the_star_is_where_the_frontier_is_from(render, results, built):
    def cases_of(results):
        page = render(summary_markdown(report_model(results)))
        head, *rows = next(rows for rows in page.tables if "total score" in rows[0])
        return {row[1]: dict(zip(head, row, strict=True)) for row in rows}

    found = cases_of(results)
    assert {name: row["measured KL"] for name, row in found.items()} == {
        "default": "2 ± 0.25",
        "w_group64": "1 ± 0.25 *",
        "w_per_tensor": "10 ± 0.25",
    }
    assert {row["total score"] for row in found.values()} == {"3", "4.5", "30"}
    results.add(case_result_of(built("w_group128", [6.0, 6.0, 8.0])))
    mixed = cases_of(results)
    assert (mixed["w_group128"]["measured KL"], mixed["default"]["total score"]) == ("n/a", "3 *")
    kl = {case.granularity: case.whole_model_kl for case in _summary(results)}
    assert kl == {"default": 2.0, "w_group64": 1.0, "w_per_tensor": 10.0, "w_group128": None}


def _summary(results):
    return session_summary(report_model(results)).cases


def test_grid_and_page_show_the_measurement_beside_the_sum(results):
    cells = {cell.granularity: cell for cell in grid_cells(results, VIEW)}
    bits = cells["default"].label.rpartition("\n")[2]
    assert cells["default"].label == f"3\nKL 2\n{bits}"
    assert "total score 3 per token, measured KL 2 ± 0.25 nats per token" in cells["default"].detail
    (view,) = contents(report_model(results)).views
    assert {p.case.split("/")[2]: (p.score, p.kl, p.damage) for p in view.measured_frontier} == {
        "default": (3.0, 2.0, 2.0),
        "w_group64": (4.5, 1.0, 1.0),
        "w_per_tensor": (30.0, 10.0, 10.0),
    }
    assert [p.case.split("/")[2] for p in view.frontier if p.best] == ["default"]
    assert [p.case.split("/")[2] for p in view.measured_frontier if p.best] == ["w_group64"]


@pytest.mark.parametrize("caption_kl", [None, [0.0, 0.0, 0.0]], ids=["unknown", "zero"])
def test_frontier_by_measurement_needs_one_above_zero_for_every_case(built, results, caption_kl):
    assert len(measured_frontier(results, VIEW)) == 3
    results.add(case_result_of(built("w_group128", [6.0, 6.0, 8.0], caption_kl)))
    assert measured_frontier(results, VIEW) == ()


@pytest.mark.parametrize(
    ("after", "drift", "beyond", "shown"),
    [
        ([6.0, 6.0, 8.0], 0.0, False, "+0.000%"),
        ([12.0, 12.0, 16.0], 1.0, True, "+100.000%, beyond noise"),
        ([12.0, 3.0, 8.0], 0.15, False, "+15.000%"),
    ],
    ids=["equal", "doubled", "noise"],
)
def test_comparison_has_the_drift_and_whether_captions_explain_it(
    built, after, drift, beyond, shown
):
    before, later = (
        case_result_of(built("default", [3.0, 3.0, 4.0], kl)) for kl in ([6.0, 6.0, 8.0], after)
    )
    found = compare(before, later)
    assert (found.kl_drift, found.is_kl_beyond_noise) == (pytest.approx(drift), beyond)
    assert kl_drift_shown(found) == shown


def test_compared_runs_have_a_column_for_it(render, tmp_path, built):
    for run, kl in (("a", [6.0, 6.0, 8.0]), ("b", [12.0, 12.0, 16.0])):
        write_case(tmp_path / run, built("default", [3.0, 3.0, 4.0], kl))
    comparison = compare_runs(tmp_path / "a", tmp_path / "b")
    ((head, row), *_) = render(compare_markdown(comparison)).tables
    assert dict(zip(head, row, strict=True))["measured KL"] == "+100.000%, beyond noise"


def test_comparison_with_a_case_that_was_not_measured_is_unknown(built):
    before = case_result_of(built("default", [3.0, 3.0, 4.0], [6.0, 6.0, 8.0]))
    found = compare(before, replace(before, whole=None))
    assert (found.kl_drift, found.is_kl_beyond_noise) == (None, None)
    assert kl_drift_shown(found) == "unknown"
