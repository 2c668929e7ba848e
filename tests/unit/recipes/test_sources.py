"""Decisions from records: equal to the selections that a run writes; bad records are refused."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from builders import changed, with_scores
from pytest_autoquant.errors import AnotherModelError, AutoquantError, RecordError, UsageError
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.records.scheme_manifest import dump_scheme
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, read_manifest
from pytest_autoquant.manifests.selection import with_budget
from pytest_autoquant.recipes.choose import Budget, choose, frontier
from pytest_autoquant.recipes.measured import measured_of
from pytest_autoquant.recipes.sources import read_decision, read_measured

VOCABULARY = load_vocabulary()
BASELINE = Path(__file__).resolve().parents[3] / "reports" / "baseline" / "tiny-qwen3-vl"
(FP8,) = (BASELINE / "weight-fp8-act-fp8" / "default").rglob("*.json")
(INT4,) = (BASELINE / "weight-int4-act-int8" / "default").rglob("*.json")


KL = {"method": "kl_div"}


def bits(amount):
    return Budget(measure="effective_bits", amount=amount)


def decide(*paths, budget=None):
    return read_decision(paths, budget, VOCABULARY)


def written(folder, manifest, name="changed"):
    path = folder / f"{name}_quant_manifest.json"
    path.write_text(dump_manifest(manifest))
    return path


@pytest.mark.parametrize("budget", [4.5, 8.0, 12.0, 16.0])
def test_one_manifest_decides_as_a_run_with_that_budget(budget):
    run = with_budget(read_manifest(INT4), budget)
    decision = decide(INT4, budget=bits(budget))
    quantized = {name for group, _ in decision.quantized for name in group.modules}
    assert quantized == {name for name, layer in run.layers.items() if layer.selected}
    assert decision.effective_bits == pytest.approx(run.autoquant_state.effective_bits)
    assert decision.score == pytest.approx(run.autoquant_state.score)
    groups = [group.module_names for group in run.layer_sensitivity.values()]
    assert [group.modules for group in decision.groups] == groups


def test_recorded_budget_is_used_where_none_is_given():
    recorded = read_manifest(INT4).run_config.effective_bits
    assert decide(INT4) == decide(INT4, budget=bits(recorded))


def test_fraction_takes_the_least_sensitive_groups():
    decision = decide(INT4, budget=Budget(measure="fraction_of_groups", amount=0.25))
    ranking = read_manifest(INT4).sensitivity_ranking
    taken = [group.name for group, _ in decision.quantized]
    assert len(taken) == len(ranking) // 4
    assert {f"{name}.quant_recipe" for name in taken} == {x.name for x in ranking[-len(taken) :]}


def test_frontier_has_the_best_selection_of_every_budget():
    measured = read_measured((FP8, INT4), VOCABULARY)
    curve = list(frontier(measured))
    assert (curve[0].effective_bits, curve[-1].score) == (pytest.approx(4.125), 0)
    for point in curve[:: len(curve) // 20]:
        assert choose(measured, bits(point.effective_bits)).score == pytest.approx(point.score)
    assert all(
        a.effective_bits < b.effective_bits and a.score > b.score for a, b in pairwise(curve)
    )


def test_max_kl_takes_the_fewest_bits_whose_measured_kl_adds_up_to_it():
    manifests = {
        "8 bits": changed(with_scores(read_manifest(FP8), {"a": 0.1, "b": 0.2}), "case", **KL),
        "4 bits": changed(with_scores(read_manifest(INT4), {"a": 1.0, "b": 5.0}), "case", **KL),
    }
    measured = measured_of(manifests)
    for limit, formats in (
        (6.0, ["wint4_aint8", "wint4_aint8"]),
        (5.99, ["wint4_aint8", "wfp8_afp8"]),
        (1.19, ["wfp8_afp8", "wfp8_afp8"]),
        (0.15, ["wfp8_afp8", None]),
    ):
        decision = choose(measured, Budget(measure="max_kl", amount=limit))
        assert [group.format and group.format.name for group in decision.groups] == formats
        assert decision.score <= limit
    silent = tuple(replace(group, left_out=frozenset({0, 1})) for group in measured.groups)
    with pytest.raises(UsageError, match="no layer group can take"):
        choose(replace(measured, groups=silent), Budget(measure="max_kl", amount=0.05))
    with pytest.raises(UsageError, match=r"quantizes no layer group; give at least 0\.1, "):
        choose(measured, Budget(measure="max_kl", amount=0.05))


def test_max_kl_needs_a_measured_kl_of_each_group():
    with pytest.raises(UsageError, match=r"wfp8_afp8.*: has no measured KL divergence"):
        decide(FP8, INT4, budget=Budget(measure="max_kl", amount=0.1))


def test_format_whose_score_is_not_finite_is_never_taken():
    (one, two) = list(read_manifest(FP8).layers)[:2]
    measured = measured_of(
        {
            "8 bits": with_scores(read_manifest(FP8), {one: 5.0, two: 1.0}),
            "4 bits": with_scores(read_manifest(INT4), {one: None, two: 0.1}),
        }
    )
    formats = [group.format.name for group in choose(measured, bits(8.01)).groups]
    assert formats == ["wfp8_afp8", "wint4_aint8"]


def test_manifests_of_different_models_are_refused(tmp_path):
    other = changed(read_manifest(INT4), "model", digest="f" * 64)
    with pytest.raises(AnotherModelError, match=r"is of another model than .*wfp8_afp8"):
        decide(FP8, written(tmp_path, other), budget=bits(6))


def module_renamed(manifest, name):
    old = next(iter(manifest.layers))
    return dump_manifest(manifest).replace(f'"{old}', f'"{name}')


@pytest.mark.parametrize("name", ["model.*", "../../etc/passwd", "re:.*", "model..q", "q\\nx: 1"])
def test_names_that_are_patterns_or_paths_are_refused(name, tmp_path):
    path = tmp_path / "odd_quant_manifest.json"
    path.write_text(module_renamed(read_manifest(INT4), name))
    with pytest.raises(RecordError, match="is not the name of a module"):
        decide(path, budget=bits(6))


@pytest.mark.parametrize(
    ("paths", "budget", "message"),
    [
        ((FP8, INT4), None, "2 candidates and no budget; give --bits, --fraction or --max-kl"),
        ((FP8,), bits(2), "effective_bits 2 cannot be reached with wfp8_afp8; give at least 8.00"),
        ((FP8,), bits(float("nan")), r"effective_bits must be in \(0, 16\], got nan"),
        ((FP8, INT4), Budget(measure="fraction_of_groups", amount=0.5), "allows one candidate"),
        ((FP8, FP8.parent / ".." / "small" / FP8.name), bits(9), "is of wfp8_afp8, as .* is"),
        ((Path("missing.json"),), bits(9), "missing.json: cannot be read"),
        ((Path(__file__).parent,), bits(9), "holds no file"),
        ((Path(__file__),), bits(9), "test_sources.py: "),
    ],
)
def test_what_cannot_be_decided_is_said(paths, budget, message):
    with pytest.raises(AutoquantError, match=message):
        decide(*paths, budget=budget)


def test_scores_of_another_method_are_refused(tmp_path):
    other = changed(read_manifest(INT4), "case", method="kl_div")
    with pytest.raises(UsageError, match=r"its scores do not compare .*method gradient -> kl_div"):
        decide(FP8, written(tmp_path, other), budget=bits(6))


def test_scheme_manifest_is_taken_as_it_is(derived, tmp_path):
    path = tmp_path / "scheme_manifest.json"
    path.write_text(dump_scheme(derived))
    (group,) = decide(tmp_path).groups
    assert (group.modules, group.format.name, group.score) == (("a",), "wfp8_afp8", 0.5)
    with pytest.raises(UsageError, match="without a budget"):
        decide(path, budget=bits(6))
    path.write_text(dump_scheme(derived).replace("wfp8_afp8", "wfp8_mine"))
    with pytest.raises(UsageError, match="pair 'wfp8_mine' of candidate wfp8_mine is not built in"):
        decide(path)


def old(groups, **scheme):
    """A manifest from before the harness, of one-linear groups with their scores."""
    return {
        "scheme": {"name": "wint4_aint8_autoquant_lm", "auto_quantize_bits": 8.0, **scheme},
        "quantization": {"quant_granularity": {"name": "w_group64"}},
        "layer_sensitivity": {
            f"{name}.quant_recipe": {
                "formats": ["CUSTOM_0(effective-bits: 4.25)", "NONE(effective-bits: 16.0)"],
                "scores": [score, 0.0],
                "costs": [1024 * 4.25 / 16, 1024.0],
                "importance": score,
                "module_names": [name],
            }
            for name, score in groups.items()
        },
    }


def test_manifest_from_before_the_harness_says_what_is_unknown(tmp_path):
    layer = "model.language_model.layers.0"
    path = tmp_path / "old_quant_manifest.json"
    path.write_text(json.dumps(old({f"{layer}.mlp.down_proj": 4.0, f"{layer}.o_proj": 1.0})))
    decision = decide(path, budget=bits(11))
    assert [group.name for group, _ in decision.quantized] == [f"{layer}.o_proj"]
    assert decision.digest is None
    assert any("unknown: the digest of the model" in note for note in decision.notes)
    with pytest.raises(UsageError, match="before the harness, whose scores do not compare"):
        decide(path, INT4, budget=bits(6))
    record = old({f"{layer}.o_proj": 1.0})
    del record["quantization"]
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="does not record the granularity; measure the case"):
        decide(path, budget=bits(6))
