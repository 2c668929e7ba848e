"""The layer report of one case: the manifest's numbers, whatever the names in it."""

import json
from dataclasses import replace

import pytest
from builders import HtmlPage, changed, results_of, with_check
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.reports.markdown import case_report
from pytest_autoquant.reports.markdown.selection_tables import budget_rows, kept_rows
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.scoring.manifest.build_manifest import build_manifest

PREFIX = "model.language_model.layers.0"


def layer_report_markdown(manifest):
    return case_report.layer_report_markdown(manifest, case_result_of(manifest))


def layer_report_json(manifest):
    text = case_report.layer_report_json(manifest, case_result_of(manifest))
    return json.loads(text, parse_constant=pytest.fail)


def with_score(findings, index, score):
    groups = list(findings.measurement.groups)
    groups[index] = replace(groups[index], score=score)
    return replace(findings, measurement=replace(findings.measurement, groups=tuple(groups)))


def test_rows_have_shares_that_add_up_unless_all_scores_are_zero(line):
    rows = case_report.layer_rows(line)
    assert [row.share for row in rows] == [0.6, 0.3, 0.1]
    assert [row.cumulative_share for row in rows] == pytest.approx([0.6, 0.9, 1.0])
    assert [row.selected for row in rows] == [True, False, True]
    groups = tuple(replace(group, score=0.0) for group in line.groups)
    rows = case_report.layer_rows(replace(line, groups=groups, total_score=0.0))
    assert [(row.score, row.share, row.cumulative_share) for row in rows] == [(0.0, None, None)] * 3


def test_infeasible_budget_names_the_smallest_reachable_one(findings):
    manifest = build_manifest(changed(findings, "run_config", effective_bits=3.5))
    assert case_report.selection_sentence(case_result_of(manifest)) == (
        "The budget of 3.5 bits per weight cannot be met: the smallest reachable is 4.125, with "
        "every group quantized."
    )


@pytest.mark.parametrize(
    ("change", "kept"), [({"keeps_16_bits": True}, "10.91"), ({"bits": 16.5}, "11.2")]
)
def test_group_that_quantizing_does_not_shrink_stays_in_16_bits_everywhere(line, change, kept):
    """A dead group, and one whose padded blocks store more than 16 bits."""
    first, *others = line.groups
    case = replace(line, groups=(replace(first, **change, selected=False), *others))
    case = replace(
        case,
        groups=(case.groups[0], *(replace(group, selected=True) for group in others)),
        selection=replace(line.selection, budget=8.0, minimum_bits=10.8, is_satisfied=False),
    )
    weights, small = sum(g.weights for g in case.groups), sum(g.weights for g in others)
    least = (16 * first.weights + 4.125 * small) / weights
    assert budget_rows(case)[0].quantized == 2
    assert budget_rows(case)[0].budget == budget_rows(case)[0].bits == pytest.approx(least)
    assert max(row.quantized for row in budget_rows(case)) == 2
    assert f"{kept_rows(case)[0].bits:.4g}" == kept
    assert case_report.selection_sentence(case).endswith("10.8, with 2 of 3 groups quantized.")


def test_tables_show_the_manifests_numbers(render, manifest):
    manifest = replace(
        manifest, measured_at="2026-11-27T03:08:14+00:00", timing={"score": 70.0, "total": 72.4}
    )
    page = render(layer_report_markdown(manifest))
    facts, budgets, kept, groups = page.tables
    assert dict(facts[1:]) == {
        "model": "toy-org/toy (checkpoint weights)",
        "format": "INT4_WEIGHT_INT8_ACT_CFG, experimental",
        "weights stored in": "4.125 bits, scales included",
        "status": "measured",
        "method": "gradient, engine modelopt",
        "captions": "4 calibrated, 3 scored (10 tokens) of mine.txt",
        "measured": "2026-11-27 03:08:14 UTC, took 1 min 12 s",
        "device": "CPU, float32",
        "versions": "modelopt 0.47.0, torch 2.11.0, transformers 5.14.0",
    }
    assert groups == [
        [
            *("rank", "group", "linears", "score", "share", "running", "weights"),
            *("score per Mbit saved", "selection"),
        ],
        [
            *("1", f"{PREFIX}.mlp.gate_proj", "2", "6", "60.0%", "60.0%", "262,144"),
            *("1.927", "quantized"),
        ],
        [
            *("2", f"{PREFIX}.self_attn.q_proj", "3", "3", "30.0%", "90.0%", "131,072"),
            *("1.927", "16-bit"),
        ],
        [
            *("3", f"{PREFIX}.self_attn.o_proj", "1", "1", "10.0%", "100.0%", "65,536"),
            *("1.285", "quantized"),
        ],
    ]
    assert budgets[:3] + budgets[5:6] == [
        ["budget", "groups quantized", "bits stored", "score", "share of the whole"],
        ["4.125", "3", "4.125", "10", "100.0%"],
        ["5", "3", "4.125", "10", "100.0%"],
        ["8", "2", "7.518", "7", "70.0%"],
    ]
    assert kept == [
        ["kept in 16 bits", "bits stored", "score left", "share of the whole"],
        ["0", "4.125", "10", "100.0%"],
        ["1", "10.91", "4", "40.0%"],
        ["2", "14.3", "1", "10.0%"],
        ["3", "16", "0", "0.0%"],
    ]
    assert "weighs a group's score against the bits that quantizing it saves" in page.text
    assert "Note: mine.txt holds 5 captions, size small needs 16: measured on 5" in page.text
    assert (
        "Within 8 bits per weight, 2 of 3 groups stay quantized: 7.518 bits, score 7 of 10 with "
        "all of them." in page.text
    )


def test_error_bars_are_shown_where_they_are_known(render, scored):
    manifest = scored({"a": (90.0, 20.0, 70.0), "b": (1.0, 2.0, 7.0), "c": (2.0, 1.0, 7.0)})
    case, page = case_result_of(manifest), render(layer_report_markdown(manifest))
    error = case.groups[0].error
    assert page.tables[-1][0][-2:] == ["ranks at 95%", "in the top ten"]
    assert [(row[0], row[-2], row[-1]) for row in page.tables[-1][1:]] == [
        ("1", error.ranks, "100%"),
        ("2", case.groups[1].error.ranks, "100%"),
        ("3", case.groups[2].error.ranks, "100%"),
    ]
    assert case.groups[2].error.ranks == "1 to 3"
    assert page.tables[-1][1][3] == f"18 ± {error.standard_error:.2g}"
    assert "Groups that share ranks" in page.text
    report = layer_report_json(manifest)["groups"]
    assert report[1]["rank_interval"] == [1, 3]
    assert report[0]["standard_error"] == error.standard_error
    assert "±" not in layer_report_markdown(scored({"a": 1.0}))


def test_json_report_carries_the_manifests_numbers_unrounded(manifest):
    report = layer_report_json(manifest)
    assert report["case"] == manifest.case.case_id
    assert report["num_scored_tokens"] == 10
    assert report["autoquant_state"]["effective_bits"] == manifest.autoquant_state.effective_bits
    assert [
        (row["rank"], f"{row['group']}.quant_recipe", row["score"]) for row in report["groups"]
    ] == [
        (rank, group.name, group.importance)
        for rank, group in enumerate(manifest.sensitivity_ranking, start=1)
    ]
    members = [m for row in report["groups"] for m in row["modules"]]
    assert sorted(members) == sorted(manifest.layers)


def test_budgets_in_between_have_the_best_selection_and_the_cases_own_is_among_them(line):
    own = replace(line, selection=replace(line.selection, budget=6.5))
    found = [(row.budget, row.quantized, row.score) for row in budget_rows(own)]
    assert found == [
        *((4.125, 3, 10.0), (5.0, 3, 10.0), (6.0, 2, 9.0), (6.5, 2, 9.0), (7.0, 2, 9.0)),
        *((8.0, 2, 7.0), (9.0, 2, 7.0), (10.0, 1, 6.0), (11.0, 2, 4.0), (12.0, 2, 4.0)),
        *((13.0, 1, 3.0), (14.0, 1, 3.0), (15.0, 1, 1.0), (16.0, 0, 0.0)),
    ]


@pytest.mark.parametrize("values", [{"score": None}, {"bits": None}, {"score": 1e308}])
def test_tables_of_selections_are_left_out_where_a_number_is_missing_or_too_large(line, values):
    case = replace(line, groups=tuple(replace(group, **values) for group in line.groups))
    assert (budget_rows(case), kept_rows(case)) == ((), ())


def test_failed_case_shows_its_problem_and_missing_numbers(render, findings):
    manifest = build_manifest(with_score(findings, 1, float("nan")))
    page = render(layer_report_markdown(manifest))
    broken = f"{PREFIX}.self_attn.o_proj"
    assert f"Failed: scores are not finite in 1 group: {broken}.quant_recipe" in page.text
    assert page.tables[1][1][:6] == ["1", broken, "1", "n/a", "n/a", "n/a"]
    assert page.tables[1][2][3:6] == ["6", "n/a", "n/a"]
    report = layer_report_json(manifest)
    assert report["status"] == "failed"
    assert report["groups"][0]["score"] is None
    assert [row["share"] for row in report["groups"]] == [None] * 3


def test_report_explains_the_score_of_its_own_method(render, findings):
    gradient = render(layer_report_markdown(build_manifest(findings))).text
    kl_case = replace(findings.case, method="kl_div")
    kl_div = render(layer_report_markdown(build_manifest(replace(findings, case=kl_case)))).text
    assert "squared gradient of the loss" in gradient
    assert "KL divergence in nats" not in gradient
    assert "KL divergence in nats" in kl_div
    assert "squared gradient of the loss" not in kl_div


def test_alias_names_the_measured_case(render, findings):
    alias = build_manifest(replace(findings, alias_of="toy/other/case"))
    facts = dict(render(layer_report_markdown(alias)).tables[0][1:])
    assert facts["status"] == "alias of toy/other/case"
    assert layer_report_json(alias)["alias_of"] == "toy/other/case"


def test_check_of_the_scores_lists_the_misranked_groups(render, manifest):
    """Attention, output and mlp rank 2, 3 and 1 by score, and 3, 2 and 1 by divergence."""
    checked = with_check(manifest, [0.25, 0.5, 2.0], captions=2)
    page = render(layer_report_markdown(checked))
    tokens = sum(manifest.dataset.scored_predictions[:2])
    assert (
        "Spearman 0.5000 between the score and the measured KL divergence of 3 groups; of the 3 "
        "with the largest divergence, 3 are among the 3 with the highest score. Measured on the "
        f"first 2 captions of 3 that are scored ({tokens} tokens), each group quantized alone."
    ) in page.text
    worst = next(rows for rows in page.tables if "rank by KL" in rows[0])
    assert worst[1:] == [
        [f"{PREFIX}.self_attn.o_proj", "3", "2", "1", "0.5 ± 0.01"],
        [f"{PREFIX}.self_attn.q_proj", "2", "3", "3", "0.25 ± 0.01"],
    ]
    report = layer_report_json(checked)
    assert report["score_check"] == {
        "captions": 2,
        "tokens": tokens,
        "spearman": 0.5,
        "top_ten": 3,
        "seconds": 1.5,
    }
    assert [(g["kl"], g["kl_standard_error"], g["kl_rank"]) for g in report["groups"]] == [
        (2.0, 0.01, 1),
        (0.25, 0.01, 3),
        (0.5, 0.01, 2),
    ]


def test_scores_that_are_not_checked_say_why(render, manifest):
    page = render(layer_report_markdown(replace(manifest, score_not_checked="it was too slow")))
    assert "Not checked: it was too slow." in page.text
    assert "Does the score hold?" not in render(layer_report_markdown(manifest)).text


def test_mixture_shows_bits_per_active_weight_beside_the_stored_ones(of_mixture, render):
    findings = changed(of_mixture, "run_config", effective_bits=9.0, cost="active")
    manifest = build_manifest(findings)
    stored, active = manifest.quantization.effective_bits, manifest.quantization.active_bits
    chosen = manifest.autoquant_state
    seen = render(layer_report_markdown(manifest))
    assert ["weights stored in", f"{stored:.4g} ({active:.4g} active) bits, scales included"] in (
        seen.tables[0]
    )
    assert (
        f"Within 9 bits per weight that a token is multiplied with, 2 of 3 groups stay quantized: "
        f"{chosen.effective_bits:.4g} bits ({chosen.active_bits:.4g} active)"
    ) in layer_report_markdown(manifest)
    headers, *rows = seen.tables[-1]
    place = headers.index("active per token")
    assert {row[1].rpartition(".")[2]: row[place] for row in rows}["experts"] == "65,536"
    budgets = {row["budget"]: row["quantized"] for row in layer_report_json(manifest)["budgets"]}
    assert budgets[9.0] == 2
    line = case_result_of(manifest)
    table = render(summary_markdown(report_model(results_of(line)))).tables
    (cases,) = [found for found in table if "active bits under budget" in found[0]]
    assert cases[1][cases[0].index("per active weight")] == f"{active:.4g}"
    assert cases[1][cases[0].index("active bits under budget")] == f"{chosen.active_bits:.4g}"
    page = HtmlPage(render_page(report_model(results_of(line)), None)).table("cases")
    assert page[1][page[0].index("bits per active weight")] == f"{active:.4g}"
    assert page[1][page[0].index("bits per active weight under budget")] == (
        f"{chosen.active_bits:.4g}"
    )
    assert len(page[1]) == len(page[0])
