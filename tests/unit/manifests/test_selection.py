"""The selection under another bit budget, from a manifest alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import changed
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    dump_manifest,
    load_manifest,
    read_manifest,
)
from pytest_autoquant.manifests.selection import select_groups, with_budget
from pytest_autoquant.scoring.manifest.build_manifest import build_manifest

#: Bits of eight experts in INT4: blocks of 128, of which the second matrices fill half a one.
STORED = 8 * (64 * (256 * 4 + 2 * 16) + 256 * (64 * 4 + 16))
BASELINES = find_manifests(Path(__file__).parents[3] / "reports" / "baseline")


@pytest.mark.parametrize("broken", [None, float("nan")])
@pytest.mark.parametrize(
    ("budget", "quantized"),
    [
        (4.0, {"attention", "output", "mlp"}),
        (4.125, {"attention", "output", "mlp"}),
        (8.0, {"output", "mlp"}),
        (12.0, {"attention", "output"}),
        (14.5, {"output"}),
        (16.0, set()),
    ],
)
def test_selection_is_that_of_a_run_with_the_budget(findings, budget, quantized, broken):
    if broken is not None:
        groups = findings.measurement.groups
        groups = (groups[0], groups[1], replace(groups[2], score=broken))
        findings = replace(findings, measurement=replace(findings.measurement, groups=groups))
    run = build_manifest(changed(findings, "run_config", effective_bits=budget))
    selected = with_budget(build_manifest(findings), budget)
    assert replace(selected, timing=run.timing) == run
    assert selected.autoquant_state.constraints.effective_bits == budget
    names = {"q_proj": "attention", "o_proj": "output", "gate_proj": "mlp"}
    chosen = {name.rpartition(".")[2] for name, layer in selected.layers.items() if layer.selected}
    assert {names[name] for name in chosen & names.keys()} == quantized


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: "-".join(path.parts[-4:-2]))
def test_selections_of_committed_manifests_follow_from_their_scores(path):
    manifest = read_manifest(path)
    recorded = manifest.autoquant_state
    budget = recorded.constraints.effective_bits
    assert select_groups(manifest.layer_sensitivity, budget).state == recorded
    other = with_budget(manifest, 12.0)
    assert other.autoquant_state.effective_bits <= 12 < 16
    assert other.autoquant_state.score < recorded.score
    assert with_budget(other, budget) == manifest


@pytest.mark.parametrize(
    ("cost", "quantized"), [("stored", {"output", "experts"}), ("active", {"attention", "output"})]
)
def test_budget_counts_stored_or_active_weights(of_mixture, cost, quantized):
    """Experts are 57% of the weights and 25% of those that a token is multiplied with."""
    findings = changed(of_mixture, "run_config", effective_bits=9.0, cost=cost)
    manifest = build_manifest(findings)
    names = {"q_proj": "attention", "o_proj": "output", "experts": "experts"}
    chosen = {name.rpartition(".")[2] for name, layer in manifest.layers.items() if layer.selected}
    assert {names[name] for name in chosen & names.keys()} == quantized
    state, sizes = manifest.autoquant_state, {"attention": 131072, "output": 65536}
    sizes |= {"experts": 8 * 2 * 64 * 256}
    active = sizes | {"experts": sizes["experts"] // 4}
    per_weight = {name: 4.125 if name != "experts" else STORED / sizes[name] for name in sizes}
    for found, weights in ((state.effective_bits, sizes), (state.active_bits, active)):
        bits = sum(n * (per_weight[g] if g in quantized else 16) for g, n in weights.items())
        assert found == pytest.approx(bits / sum(weights.values()), rel=1e-12)
    assert load_manifest(dump_manifest(manifest), source="x") == manifest
    other = "active" if cost == "stored" else "stored"
    assert with_budget(with_budget(manifest, 9.0, other), 9.0, cost) == manifest
