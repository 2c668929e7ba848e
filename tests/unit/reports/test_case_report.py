"""The layer report of one case: the manifest's numbers, whatever the names in it."""

import json
from dataclasses import replace

import pytest
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.reports import case_report as layers
from pytest_autoquant.scoring.build_manifest import build_manifest

PREFIX = "model.language_model.layers.0"


def layer_rows(manifest):
    return layers.layer_rows(case_result_of(manifest))


def layer_report_markdown(manifest):
    return layers.layer_report_markdown(manifest, case_result_of(manifest))


def layer_report_json(manifest):
    return layers.layer_report_json(manifest, case_result_of(manifest))


def selection_sentence(manifest):
    return layers.selection_sentence(case_result_of(manifest))


def with_score(findings, index, score):
    groups = list(findings.measurement.groups)
    groups[index] = replace(groups[index], score=score)
    return replace(findings, measurement=replace(findings.measurement, groups=tuple(groups)))


def with_budget(findings, bits):
    return replace(findings, run_config=replace(findings.run_config, effective_bits=bits))


def test_rows_go_from_most_to_least_sensitive_and_shares_add_up(manifest):
    rows = layer_rows(manifest)
    assert [(row.rank, row.group, row.score) for row in rows] == [
        (1, f"{PREFIX}.mlp.gate_proj", 6.0),
        (2, f"{PREFIX}.self_attn.q_proj", 3.0),
        (3, f"{PREFIX}.self_attn.o_proj", 1.0),
    ]
    assert [row.share for row in rows] == [0.6, 0.3, 0.1]
    assert [row.cumulative_share for row in rows] == pytest.approx([0.6, 0.9, 1.0])
    assert [row.weights for row in rows] == [262_144, 131_072, 65_536]
    assert [row.selected for row in rows] == [True, False, True]
    assert rows[0].modules == (f"{PREFIX}.mlp.gate_proj", f"{PREFIX}.mlp.up_proj")


def test_tables_show_the_manifests_numbers(render, manifest):
    page = render(layer_report_markdown(manifest))
    facts, groups = page.tables
    assert dict(facts[1:]) == {
        "model": "toy-org/toy (checkpoint weights)",
        "format": "INT4_WEIGHT_INT8_ACT_CFG, experimental",
        "weights stored in": "4.125 bits, block scales included",
        "status": "measured",
        "method": "gradient, engine modelopt",
        "captions": "4 calibrated, 3 scored (10 tokens) of mine.txt",
        "device": "CPU, float32",
        "versions": "modelopt 0.47.0, torch 2.11.0, transformers 5.14.0",
    }
    assert groups == [
        ["rank", "group", "linears", "score", "share", "running", "weights", "selection"],
        ["1", f"{PREFIX}.mlp.gate_proj", "2", "6", "60.0%", "60.0%", "262,144", "quantized"],
        ["2", f"{PREFIX}.self_attn.q_proj", "3", "3", "30.0%", "90.0%", "131,072", "16-bit"],
        ["3", f"{PREFIX}.self_attn.o_proj", "1", "1", "10.0%", "100.0%", "65,536", "quantized"],
    ]
    assert "Note: mine.txt holds 5 captions, size small needs 16: measured on 5" in page.text
    assert (
        "Within 8 bits per weight, 2 of 3 groups stay quantized: 7.518 bits, score 7 of 10 with "
        "all of them." in page.text
    )


def test_json_report_carries_the_manifests_numbers_unrounded(manifest):
    report = json.loads(layer_report_json(manifest), parse_constant=pytest.fail)
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


def test_failed_case_shows_its_problem_and_missing_numbers(render, findings):
    manifest = build_manifest(with_score(findings, 1, float("nan")))
    page = render(layer_report_markdown(manifest))
    broken = f"{PREFIX}.self_attn.o_proj"
    assert f"Failed: scores are not finite in 1 groups: {broken}.quant_recipe" in page.text
    assert page.tables[1][1][:6] == ["1", broken, "1", "n/a", "n/a", "n/a"]
    assert page.tables[1][2][3:6] == ["6", "n/a", "n/a"]
    report = json.loads(layer_report_json(manifest), parse_constant=pytest.fail)
    assert report["status"] == "failed"
    assert report["groups"][0]["score"] is None
    assert [row["share"] for row in report["groups"]] == [None] * 3


def test_scores_that_are_all_zero_have_no_shares(findings):
    for index in range(3):
        findings = with_score(findings, index, 0.0)
    rows = layer_rows(build_manifest(findings))
    assert [(row.score, row.share, row.cumulative_share) for row in rows] == [(0.0, None, None)] * 3


def test_infeasible_budget_names_the_smallest_reachable_one(findings):
    sentence = selection_sentence(build_manifest(with_budget(findings, 3.5)))
    assert sentence == (
        "The budget of 3.5 bits per weight cannot be met: the smallest reachable is 4.125, with "
        "every group quantized."
    )


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
    assert json.loads(layer_report_json(alias))["alias_of"] == "toy/other/case"
