"""From scores to a manifest, with numbers small enough to check by hand (see conftest)."""

import json
import time
from dataclasses import replace
from math import inf, nan

import pytest
import torch
from builders import config_of, linear
from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.errors import RecordError
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import builtin_pairs
from pytest_autoquant.grid.case import Combination
from pytest_autoquant.manifests.records.packed_scores import unpack_scores
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    RankedGroup,
    dump_manifest,
    load_manifest,
)
from pytest_autoquant.modelopt_support.probe import Prober
from pytest_autoquant.scoring.manifest.build_manifest import build_manifest
from pytest_autoquant.scoring.manifest.notes import error_bar_notes
from pytest_autoquant.scoring.signal import Signal

ATTENTION = "model.language_model.layers.0.self_attn.q_proj.quant_recipe"
OUTPUT = "model.language_model.layers.0.self_attn.o_proj.quant_recipe"
OUTPUT_LINEAR = OUTPUT.removesuffix(".quant_recipe")
MLP = "model.language_model.layers.0.mlp.gate_proj.quant_recipe"


def with_groups(findings, *, scores=(30.0, 10.0, 60.0), quantized=(True, True, True)):
    groups = tuple(
        replace(group, score=score, quantized=on)
        for group, score, on in zip(findings.measurement.groups, scores, quantized, strict=True)
    )
    return replace(findings, measurement=replace(findings.measurement, groups=groups))


def with_budget(findings, bits):
    return replace(findings, run_config=replace(findings.run_config, effective_bits=bits))


def with_group(pair, granularity):
    """A config of a built-in pair, with weight blocks of any size."""
    size = int(granularity.removeprefix("w_group")) if granularity != "default" else None
    overlay = Granularity(name=granularity, weight={"block_sizes": {-1: size}} if size else None)
    return resolve(builtin_pairs()[pair], overlay)


def kept(manifest):
    """The groups that the budget leaves unquantized."""
    return {layer.group for layer in manifest.layers.values() if not layer.selected}


def test_rank_1_is_the_most_sensitive_and_scores_are_per_scored_token(manifest):
    assert manifest.sensitivity_ranking == (
        RankedGroup(name=MLP, importance=6.0),
        RankedGroup(name=ATTENTION, importance=3.0),
        RankedGroup(name=OUTPUT, importance=1.0),
    )
    groups = manifest.layer_sensitivity
    assert {name: group.rank for name, group in groups.items()} == {ATTENTION: 2, OUTPUT: 3, MLP: 1}
    assert {name: group.scores for name, group in groups.items()} == {
        ATTENTION: (3.0, 0.0),
        OUTPUT: (1.0, 0.0),
        MLP: (6.0, 0.0),
    }
    assert all(group.importance == group.scores[0] for group in groups.values())
    assert manifest.case.status == "measured"
    assert manifest.case.problems == ()


def test_error_bars_come_from_the_scores_by_caption(findings):
    """Of 3 + 3 + 4 predicted tokens; digests order the captions."""
    predictions = findings.data.scored_predictions
    parts = [[3.0 * n for n in predictions], [1.0, 2.0, 7.0], [6.0 * n for n in predictions]]
    groups = tuple(
        replace(group, per_caption=tuple(part))
        for group, part in zip(findings.measurement.groups, parts, strict=True)
    )
    measurement = replace(findings.measurement, groups=groups)
    manifest = build_manifest(replace(findings, measurement=measurement))
    attention, output, mlp = manifest.layer_sensitivity.values()
    assert attention.standard_error == pytest.approx(0.0, abs=1e-12)
    assert output.standard_error > 0.1
    assert [g.rank_interval for g in (mlp, attention, output)] == [(1, 1), (2, 3), (2, 3)]
    assert mlp.top_ten_probability == 1.0
    assert unpack_scores(output.caption_scores, 3) == (1.0, 2.0, 7.0)
    assert load_manifest(dump_manifest(manifest), source="case") == manifest
    for text, problem in (
        (attention.caption_scores, "caption_scores gives 3.0 per token, importance is 1.0"),
        ("AAAA", "caption_scores must be base64 of 3 numbers"),
        ("not base64", "caption_scores must be base64 of 3 numbers"),
    ):
        damaged = {**manifest.layer_sensitivity, OUTPUT: replace(output, caption_scores=text)}
        with pytest.raises(RecordError, match=problem):
            load_manifest(
                dump_manifest(replace(manifest, layer_sensitivity=damaged)), source="case"
            )


@pytest.mark.parametrize(
    ("per_caption", "captions", "reason"),
    [
        (None, 3, ("no error bars: stock AutoQuant does not tell captions apart",)),
        ((5.0,), 1, ("no error bars: a single caption is scored; score at least two",)),
        ((1.0, 2.0, 7.0), 3, ()),
    ],
)
def test_missing_error_bars_have_a_reason(findings, per_caption, captions, reason):
    rows = findings.data.replayed_captions[:captions]
    data = replace(findings.data, scored=tuple(Batch(rows=(row,)) for row in rows))
    groups = [replace(group, per_caption=per_caption) for group in findings.measurement.groups]
    measurement = replace(findings.measurement, groups=tuple(groups))
    assert error_bar_notes(measurement, data) == reason
    manifest = build_manifest(replace(findings, measurement=measurement, data=data))
    found = [group.standard_error for group in manifest.layer_sensitivity.values()]
    assert all((error is None) == bool(reason) for error in found)


def test_equal_scores_keep_the_order_of_the_model(findings):
    ranking = build_manifest(with_groups(findings, scores=(1.0, 2.0, 1.0))).sensitivity_ranking
    assert [group.name for group in ranking] == [OUTPUT, ATTENTION, MLP]


def test_scores_depend_on_the_scored_captions_only_by_their_tokens(findings, manifest):
    doubled = replace(findings.data, scored=findings.data.scored * 2)
    twice = with_groups(replace(findings, data=doubled), scores=(60.0, 20.0, 120.0))
    assert build_manifest(twice).sensitivity_ranking == manifest.sensitivity_ranking
    assert build_manifest(twice).dataset.num_scored_tokens == 20
    more = replace(findings.data, unscored=(Batch(rows=((1, 2, 3, 4, 5, 6),) * 2),))
    with_more = build_manifest(replace(findings, data=more))
    assert with_more.sensitivity_ranking == manifest.sensitivity_ranking
    assert with_more.dataset.num_tokens == 13 + 12


def test_costs_are_weights_times_bits_over_16_as_in_modelopt(manifest):
    groups = manifest.layer_sensitivity
    assert groups[ATTENTION].costs == (131_072 * 4.125 / 16, 131_072.0)
    assert groups[OUTPUT].costs == (65_536 * 4.125 / 16, 65_536.0)
    assert groups[MLP].costs == (262_144 * 4.125 / 16, 262_144.0)
    assert groups[MLP].formats == (
        "INT4_WEIGHT_INT8_ACT_CFG(effective-bits: 4.125)",
        "NONE(effective-bits: 16.0)",
    )


@pytest.mark.parametrize(
    ("pair", "granularity", "stored", "nominal"),
    [  # the o_proj of 256 x 256, and gate_proj and up_proj of 512 x 256 each
        ("wint8_aint8", "default", (256 * 260 * 8, 2 * 512 * 260 * 8), 8.0),
        ("wfp8_afp8", "default", (256 * 256 * 8 + 32, 2 * (512 * 256 * 8 + 32)), 8.0),
        ("wnvfp4_afp8", "w_group128", (256 * 256 * 4.5 + 32, 2 * (512 * 256 * 4.5 + 32)), 4.5),
        (
            "wint4_aint8",
            "w_group96",
            (256 * (256 * 4 + 3 * 16), 2 * 512 * (256 * 4 + 48)),
            4 + 1 / 6,
        ),
        ("wint4_aint8", "w_group512", (256 * (256 * 4 + 16), 2 * 512 * (256 * 4 + 16)), 4 + 1 / 32),
    ],
)
def test_bits_are_those_stored_for_each_shape(findings, pair, granularity, stored, nominal):
    """A channel of 256 weights of 8 bits and a scale of 32 takes as much as 260."""
    config = with_group(pair, granularity)
    manifest = build_manifest(with_budget(replace(findings, config=config), nominal))
    o_proj, mlp = (manifest.layer_sensitivity[name] for name in (OUTPUT, MLP))
    assert (o_proj.costs[0] * 16, mlp.costs[0] * 16) == stored
    assert sum(layer.stored_bits for layer in manifest.layers.values()) == sum(
        group.costs[0] * 16 for group in manifest.layer_sensitivity.values()
    )
    per_weight = stored[0] / 65_536
    assert o_proj.formats[0].endswith(f"(effective-bits: {per_weight:.6g})")
    record, state = manifest.quantization, manifest.autoquant_state
    assert record.nominal_effective_bits == config.modelopt()["effective_bits"] == nominal
    assert record.effective_bits == state.effective_bits == state.minimum_effective_bits > nominal
    assert not state.is_satisfied


def test_selection_has_the_lowest_score_within_the_budget(manifest):
    state = manifest.autoquant_state
    assert kept(manifest) == {ATTENTION}
    assert (state.score, state.total_score) == (7.0, 10.0)
    assert state.effective_bits == (131_072 * 16 + 327_680 * 4.125) / 458_752
    assert state.minimum_effective_bits == 4.125
    assert state.constraints.effective_bits == 8.0
    assert state.is_satisfied


@pytest.mark.parametrize(
    ("budget", "expected", "score"),
    [
        (4.125, set(), 10.0),
        (11.0, {MLP}, 4.0),
        (12.7, {MLP, OUTPUT}, 3.0),
        (16.0, {MLP, ATTENTION, OUTPUT}, 0.0),
    ],
)
def test_selection_depends_on_the_budget(findings, budget, expected, score):
    manifest = build_manifest(with_budget(findings, budget))
    assert kept(manifest) == expected
    assert manifest.autoquant_state.score == score


def test_budget_that_cannot_be_met_is_recorded_with_the_smallest_one(findings):
    manifest = build_manifest(with_budget(findings, 3.0))
    state = manifest.autoquant_state
    assert not state.is_satisfied
    assert state.constraints.effective_bits == 3.0
    assert state.effective_bits == state.minimum_effective_bits == 4.125
    assert state.score == state.total_score == 10.0
    assert kept(manifest) == set()
    assert manifest.case.status == "measured"


@pytest.mark.parametrize("broken", [nan, inf])
def test_score_that_is_not_finite_fails_the_case_and_names_the_group(findings, broken):
    scored = with_groups(findings, scores=(30.0, broken, 60.0))
    # The budget keeps one group, attention with the score 3 or the one without a score.
    manifest = build_manifest(with_budget(scored, 8.0))
    assert manifest.case.status == "failed"
    assert manifest.case.problems == (f"scores are not finite in 1 group: {OUTPUT}",)
    assert manifest.layer_sensitivity[OUTPUT].scores == (None, 0.0)
    assert manifest.layer_sensitivity[OUTPUT].importance is None
    assert manifest.sensitivity_ranking[0] == RankedGroup(name=OUTPUT, importance=None)
    assert [group.importance for group in manifest.sensitivity_ranking[1:]] == [6.0, 3.0]
    assert manifest.autoquant_state.total_score is None
    assert kept(manifest) == {OUTPUT}
    text = dump_manifest(manifest)
    json.loads(text, parse_constant=pytest.fail)
    assert load_manifest(text, source="x") == manifest


@pytest.mark.parametrize("unit", [1.0, 1e-12])
@pytest.mark.parametrize(("attention", "mlp", "worse"), [(3, 2, ATTENTION), (2, 3, MLP)])
def test_score_that_is_not_finite_leaves_the_choice_among_the_others_unchanged(
    findings, attention, mlp, worse, unit
):
    # The budget keeps the broken group and either of the others, not both.
    scored = with_groups(findings, scores=(attention * unit, nan, mlp * unit))
    assert kept(build_manifest(with_budget(scored, 13.0))) == {OUTPUT, worse}


def test_linears_without_a_score_are_named_and_belong_to_no_group(findings):
    extra = {
        name: linear(name, 8, 8)
        for name in (f"model.language_model.layers.{i}.mlp.extra" for i in range(7))
    }
    manifest = build_manifest(replace(findings, linears={**findings.linears, **extra}))
    names = ", ".join(list(extra)[:5])
    assert manifest.case.status == "failed"
    assert manifest.case.problems == (f"no score for 7 linears: {names} and 2 more",)
    unscored = manifest.layers["model.language_model.layers.6.mlp.extra"]
    assert (unscored.group, unscored.quantized, unscored.selected) == ("", False, False)
    assert (unscored.out_features, unscored.in_features, unscored.padded_to) == (8, 8, 128)
    assert manifest.num_quantized_layers == 6


def with_signal(findings, **linears):
    signal = Signal(**linears)
    return replace(findings, measurement=replace(findings.measurement, signal=signal))


def without_groups(findings):
    return replace(findings, measurement=replace(findings.measurement, groups=()))


@pytest.mark.parametrize(
    ("change", "problem", "num_quantized"),
    [
        (
            lambda findings: with_groups(findings, quantized=(False, True, True)),
            f"quantizers were off in 1 group: {ATTENTION}",
            3,
        ),
        (
            lambda findings: with_groups(findings, scores=(nan, nan, nan)),
            f"scores are not finite in 3 groups: {ATTENTION}, {OUTPUT}, {MLP}",
            6,
        ),
        (
            lambda findings: with_signal(
                with_groups(findings, scores=(30.0, 0.0, 60.0)), unmoved=(OUTPUT_LINEAR,)
            ),
            "nothing passed through 1 group, so a score of zero says nothing: "
            f"{OUTPUT} never ran, or all inputs or all gradients were zero",
            6,
        ),
        (without_groups, "nothing was quantized: AutoQuant searched no layer group", 0),
    ],
    ids=["quantizers off", "no finite score", "no signal", "no groups"],
)
def test_measurement_with_a_problem_fails_the_case_and_has_a_manifest(
    findings, change, problem, num_quantized
):
    manifest = build_manifest(change(findings))
    assert (manifest.case.status, manifest.case.problems) == ("failed", (problem,))
    assert manifest.num_quantized_layers == num_quantized
    assert load_manifest(dump_manifest(manifest), source="x") == manifest


def test_group_of_a_dead_linear_scores_zero_and_is_never_selected(findings):
    scored = with_groups(findings, scores=(30.0, 0.0, 60.0))
    manifest = build_manifest(
        with_budget(with_signal(scored, dead=(OUTPUT_LINEAR,), unmoved=(OUTPUT_LINEAR,)), 4.125)
    )
    assert (manifest.case.status, manifest.case.problems) == ("measured", ())
    assert kept(manifest) == {OUTPUT}
    state = manifest.autoquant_state
    assert not state.is_satisfied
    assert state.effective_bits == state.minimum_effective_bits > 4.125


def test_layers_of_a_group_are_quantized_if_its_quantizers_were_on(findings):
    manifest = build_manifest(with_groups(findings, quantized=(False, True, True)))
    assert {n for n, layer in manifest.layers.items() if not layer.quantized} == {
        f"model.language_model.layers.0.self_attn.{x}_proj" for x in "qkv"
    }
    assert build_manifest(without_groups(findings)).autoquant_state.effective_bits == 16.0


def test_alias_has_the_scores_of_the_measured_case_and_no_time(findings, manifest):
    measured_as = "toy/wint4_aint8/default/small/gradient"
    alias = build_manifest(replace(findings, alias_of=measured_as))
    assert (alias.case.status, alias.case.alias_of) == ("alias", measured_as)
    assert alias.layer_sensitivity == manifest.layer_sensitivity
    assert alias.timing == {}
    failed = with_groups(findings, scores=(nan, 1.0, 1.0))
    case = build_manifest(replace(failed, alias_of=measured_as)).case
    assert (case.status, case.alias_of) == ("failed", measured_as)
    assert {name: manifest.timing[name] for name in ("calibrate", "score")} == {
        "calibrate": 1.5,
        "score": 2.5,
    }


def test_total_time_counts_from_the_start_of_the_case(findings):
    started = time.perf_counter() - 7.0
    assert 7.0 <= build_manifest(replace(findings, started=started)).timing["total"] < 3600.0


def test_dataset_counts_the_captions_used(manifest):
    data = manifest.dataset
    assert (data.name, data.size, data.sha256) == ("mine.txt", "small", "c" * 64)
    assert (data.num_requested, data.num_calib_samples, data.num_score_samples) == (16, 4, 3)
    assert (data.num_tokens, data.num_scored_tokens) == (4 + 4 + 5 + 3, 3 + 3 + 4)
    assert data.token_lengths == {3: 1, 4: 2, 5: 1}
    assert (data.num_calib_batches, data.num_score_batches, data.batch_size) == (3, 2, 2)
    assert data.num_dropped == 1


def test_scheme_has_the_fields_of_older_manifests(manifest):
    scheme = manifest.scheme
    assert scheme.name == "wint4_aint8_autoquant_lm"
    assert scheme.quant_formats == ("INT4_WEIGHT_INT8_ACT_CFG",)
    assert (scheme.auto_quantize_bits, scheme.auto_quantize_score_size) == (8.0, 3)
    assert (scheme.auto_quantize_method, scheme.coverage_mode) == ("gradient", "lm_only")


@pytest.mark.parametrize(
    ("pair", "granularity", "preset", "weight_cfg", "bits", "overrides"),
    [
        (
            "wfp4_afp8",
            "default",
            True,
            {
                "num_bits": [2, 1],
                "block_sizes": {"-1": 32, "type": "dynamic", "scale_bits": [8, 0]},
            },
            4.25,
            {},
        ),
        (
            "wint8_afp8",
            "w_group64",
            False,
            {"num_bits": 8, "block_sizes": {"-1": 64}},
            8.25,
            {"*weight_quantizer": {"block_sizes": {"-1": 64}}},
        ),
    ],
)
def test_quantization_is_recorded_in_json_types(
    findings, pair, granularity, preset, weight_cfg, bits, overrides
):
    plain = config_of(pair, granularity)
    config = Prober(torch.device("cpu"), torch.float32).resolve(plain.pair, plain.granularity)
    named = Combination(pair=config.pair, granularity=config.granularity)
    case = replace(findings.case, combination=named)
    manifest = build_manifest(replace(findings, config=config, case=case))
    record = manifest.quantization
    entries = {entry["quantizer_name"]: entry for entry in record.effective_quant_cfg}
    assert entries["*weight_quantizer"]["cfg"] == weight_cfg
    assert len(record.effective_quant_cfg) == 27
    assert (record.base_is_modelopt_preset, record.effective_bits) == (preset, bits)
    assert record.quant_granularity.quant_cfg_overrides == overrides
    assert (record.algorithm, record.digest) == ("max", config.digest)
    assert load_manifest(dump_manifest(manifest), source="x") == manifest


def test_notes_of_the_config_come_before_those_of_the_run(findings):
    config = config_of("wfp4_afp8")
    first, second = build_manifest(replace(findings, config=config)).case.notes
    assert "algorithm set to max" in first
    assert second == "mine.txt holds 5 captions, size small needs 16: measured on 5"
