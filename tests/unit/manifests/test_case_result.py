"""Case results: the fields taken from a manifest, and the place of groups in the model."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from builders import changed
from pytest_autoquant.manifests.case_result import Group, case_result_of, finite
from pytest_autoquant.manifests.fingerprint import fingerprint_of

LAYER = "model.language_model.layers.0"
ATTENTION = f"{LAYER}.self_attn.q_proj"
OUTPUT = f"{LAYER}.self_attn.o_proj"
MLP = f"{LAYER}.mlp.gate_proj"


def group(*modules, name=None):
    return Group(
        name=name or modules[0],
        score=1.0,
        rank=1,
        modules=modules,
        weights=None,
        selected=None,
    )


def with_total(manifest, total):
    return changed(manifest, "autoquant_state", total_score=total)


@pytest.fixture
def case(manifest):
    return case_result_of(manifest)


def test_fields_are_those_of_the_manifest(case, manifest):
    assert case.case_id == "toy/wint4_aint8/a_per_token_dynamic/small/gradient"
    assert (case.model, case.pair, case.granularity) == (
        "toy",
        "wint4_aint8",
        "a_per_token_dynamic",
    )
    assert (case.size, case.method) == ("small", "gradient")
    assert (case.status, case.alias_of, case.experimental) == ("measured", None, True)
    assert (case.effective_bits, case.total_score) == (4.125, 10.0)
    assert case.format_name == "INT4_WEIGHT_INT8_ACT_CFG"
    assert case.problems == ()
    assert case.notes == ("mine.txt holds 5 captions, size small needs 16: measured on 5",)
    assert case.quantizers == {
        "weight_quantizer": "4 bit, blocks of 128",
        "input_quantizer": "8 bit, dynamic",
    }
    assert case.fingerprint == fingerprint_of(manifest)
    assert not case.is_old


def test_groups_are_sorted_by_sensitivity_without_the_suffix_of_manifests(case):
    assert [(g.name, g.score, g.rank, g.weights, g.selected) for g in case.groups] == [
        (MLP, 6.0, 1, 262_144, True),
        (ATTENTION, 3.0, 2, 131_072, False),
        (OUTPUT, 1.0, 3, 65_536, True),
    ]
    assert case.groups[0].modules == (MLP, f"{LAYER}.mlp.up_proj")
    assert case.top_group == MLP


def test_groups_are_available_in_model_order(case):
    assert case.module_order == (ATTENTION, OUTPUT, MLP)
    assert [g.name for g in case.in_module_order] == [ATTENTION, OUTPUT, MLP]
    assert set(case.in_module_order) == set(case.groups)


def test_selection_is_that_of_the_bit_budget(case):
    chosen = case.selection
    assert (chosen.budget, chosen.minimum_bits, chosen.is_satisfied) == (8.0, 4.125, True)
    assert chosen.bits == pytest.approx(7.517857142857143)
    assert chosen.score == 7.0
    assert case.selected_groups == 2


def test_group_is_selected_only_if_all_its_linears_are(manifest):
    layers = manifest.layers | {
        f"{LAYER}.mlp.up_proj": replace(manifest.layers[f"{LAYER}.mlp.up_proj"], selected=False)
    }
    found = case_result_of(replace(manifest, layers=layers))
    assert [g.selected for g in found.groups] == [False, False, True]
    assert found.selected_groups == 1


def test_shares_are_parts_of_the_total_score(case):
    assert case.shares == {MLP: 0.6, ATTENTION: 0.3, OUTPUT: 0.1}
    broken = replace(case.groups[0], score=None)
    assert replace(case, groups=(broken, *case.groups[1:])).shares[MLP] == 0.0
    assert [replace(case, total_score=total).shares for total in (None, 0.0)] == [{}, {}]


def test_case_without_groups_has_no_top_group(manifest):
    empty = replace(manifest, sensitivity_ranking=(), layer_sensitivity={}, layers={})
    found = case_result_of(with_total(empty, 0.0))
    assert (found.top_group, found.selected_groups, found.groups) == ("", 0, ())
    assert (found.in_module_order, found.shares) == ((), {})


def test_manifest_path_has_slashes(manifest):
    assert case_result_of(manifest).manifest == (
        "toy/weight-int4-act-int8/a_per_token_dynamic/small/"
        "wint4_aint8_autoquant_lm_quant_manifest.json"
    )
    assert case_result_of(manifest, Path("moved") / "x.json").manifest == "moved/x.json"


def test_origin_has_model_data_versions_and_device(case, manifest):
    assert case.origin == {
        "model": "toy-org/toy (checkpoint weights)",
        "model digest": "d" * 64,
        "architecture": "ToyForCausalLM",
        "compute dtype": "float32",
        "captions": "mine.txt, small: 4 calibrated, 3 scored (10 tokens)",
        "captions digest": f"small: {'c' * 64}",
        "token ids digest": f"small: {manifest.dataset.tokens_sha256}",
        "date": case.source.measured_at[:10],
        "method": "gradient",
        "engine": "modelopt",
        "bit budget": "8 bits per weight",
        "device": "CPU (cpu)",
        "platform": "Linux x86_64",
        "CUDA": "none",
        "harness": "0.1.0",
        "ModelOpt": "0.47.0",
        "torch": "2.11.0",
        "transformers": "5.14.0",
        "Python": "3.11.7",
    }


@pytest.mark.parametrize(
    ("modules", "layer", "projection"),
    [
        ("m.layers.12.attn.q_proj m.layers.12.attn.k_proj", 12, "attn.{q,k}_proj"),
        ("m.layers.0.self_attn.o_proj", 0, "self_attn.o_proj"),
        ("lm_head", None, "lm_head"),
        ("m.layers.1.mlp.w1 m.layers.1.mlp.w3", 1, "mlp.{w1,w3}"),
        ("m.layers.1.a_up m.layers.1.b_down", 1, "{a_up,b_down}"),
        ("m.layers.1.a_up m.layers.1.b_up", 1, "{a,b}_up"),
        ("m.layers.1.self.q_proj m.layers.1.cross.q_proj", 1, "self.q_proj"),
        ("m.layers.7.mlp.experts.3.up_proj", 7, "mlp.experts.3.up_proj"),
        ("0.proj", 0, "proj"),
        ("layer12.proj", None, "layer12.proj"),
        ("a.proj a._proj", None, "a.{proj,_proj}"),
    ],
)
def test_group_has_its_decoder_layer_and_projection(modules, layer, projection):
    found = group(*modules.split())
    assert (found.layer, found.projection) == (layer, projection)


def test_group_with_unknown_linears_is_placed_by_its_name():
    found = group(name="m.layers.4.self_attn.q_proj")
    assert (found.layer, found.projection) == (4, "self_attn.q_proj")


def test_number_that_is_not_finite_becomes_none():
    assert [finite(value) for value in (math.nan, math.inf, -math.inf, None)] == [None] * 4
    assert [finite(value) for value in (0.0, -1.5, 1e308)] == [0.0, -1.5, 1e308]
