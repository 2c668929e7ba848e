"""The regression gate: what passes, what fails, and what it reports and writes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from builders import changed
from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, read_manifest
from pytest_autoquant.manifests.selection import with_budget
from pytest_autoquant.regression.baselines import PASSED, Baselines, Outcome, Verdict
from pytest_autoquant.regression.tolerances import Tolerances

CASE = "toy/wint4_aint8/a_per_token_dynamic/small/gradient"
MEASURED = Path("reports/tmp/case.json")
LOOSE = Tolerances(spearman=-1.0, top_ten=0.0, total=math.inf, group=math.inf, selected=10**6)
STRICT = Tolerances(spearman=0.98, top_ten=0.9, total=0.02, group=0.1, selected=0)
ACCEPT = "if the change is right, accept it with --aq-update-baseline"
WRITING = [{"update": True}, {"missing": "write"}]


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "blessed"


@pytest.fixture
def bless(folder):
    """Write a baseline and return its path."""

    def write(manifest, below=""):
        path = folder / below / manifest.path
        write_atomic(path, dump_manifest(manifest))
        return path

    return write


@pytest.fixture
def gate(folder):
    """Open the gate with these options."""

    def open_gate(**options):
        return Baselines(folder, **({"missing": "fail", "update": False, "allowed": ()} | options))

    return open_gate


@pytest.fixture
def other(manifest):
    """Another case."""
    return changed(manifest, "case", case_id="toy/other", granularity="default")


# A case and its baseline


def test_case_equal_to_its_baseline_passes_also_where_nothing_can_be_written(
    bless, gate, folder, manifest
):
    bless(manifest)
    opened = gate()
    folder.rename(folder.with_name("moved"))
    folder.write_text("a file in the way")
    opened.check()
    assert opened.judge(manifest, MEASURED, STRICT) == Verdict(outcome=Outcome.PASSED)


def test_drifted_case_fails_with_values_limits_files_and_the_option_to_accept(bless, gate, scored):
    path = bless(scored({"a": 4.0, "b": 3.0, "c": 2.0}))
    verdict = gate().judge(scored({"a": 5.0, "b": 3.0, "c": 2.0}), MEASURED, STRICT)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.text.splitlines() == [
        f"{CASE} drifted from its baseline:",
        "  total score +11.11%, 2.00% allowed (--aq-tol-total)",
        "  1 of 3 groups drifted by more than 10.00%, up to 25.00% (--aq-tol-group)",
        "worst groups, score per token:",
        "  a: 4 -> 5 (+25.00%), rank 1 -> 1",
        f"baseline: {path}",
        f"measured: {MEASURED}",
        ACCEPT,
    ]
    wide = replace(STRICT, total=0.2, group=0.3)
    assert gate().judge(scored({"a": 5.0, "b": 3.0, "c": 2.0}), MEASURED, wide) == PASSED


def test_at_most_five_worst_groups_are_shown(bless, gate, scored):
    bless(scored({"n": math.nan} | {f"g{i}": 4.0 for i in range(8)}))
    after = scored({"n": 1.0} | {f"g{i}": 4.0 + i for i in range(8)})
    shown = [
        line.split(", ")[0].strip()
        for line in gate().judge(after, MEASURED, STRICT).text.splitlines()
        if " -> " in line
    ]
    assert shown == [
        "n: not finite -> 1 (+inf%)",
        "g7: 4 -> 11 (+175.00%)",
        "g6: 4 -> 10 (+150.00%)",
        "g5: 4 -> 9 (+125.00%)",
        "g4: 4 -> 8 (+100.00%)",
    ]


@pytest.mark.parametrize("options", [{}, {"update": True}])
def test_case_with_status_failed_is_neither_compared_nor_written(
    bless, gate, folder, manifest, options
):
    failed = changed(manifest, "case", status="failed", problems=("out of memory",))
    bless(manifest)
    assert gate(**options).judge(failed, MEASURED, STRICT) == PASSED
    assert read_manifest(folder / manifest.path) == manifest


# Other inputs


@pytest.mark.parametrize(
    ("allowed", "differences", "hint"),
    [
        ((), f"device cpu -> cuda; tokens {'a' * 16} -> {'b' * 16}", "device,tokens"),
        (("tokens",), "device cpu -> cuda", "device"),
    ],
)
def test_baseline_of_other_inputs_is_refused(bless, gate, manifest, allowed, differences, hint):
    path = bless(changed(manifest, "dataset", tokens_sha256="a" * 64))
    after = changed(manifest, "environment", device="cuda")
    after = changed(after, "dataset", tokens_sha256="b" * 64)
    verdict = gate(allowed=allowed).judge(after, MEASURED, LOOSE)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.text.splitlines() == [
        f"{CASE}: the baseline was measured with other inputs: {differences}",
        f"to compare nevertheless, pass --aq-baseline-allow {hint}",
        f"baseline: {path}",
        f"measured: {MEASURED}",
        ACCEPT,
    ]


def test_baseline_that_does_not_record_its_token_ids_is_compared(bless, gate, manifest):
    bless(changed(manifest, "dataset", tokens_sha256=None))
    assert gate().judge(manifest, MEASURED, STRICT) == PASSED


def test_allowed_differences_do_not_prevent_the_comparison(bless, gate, scored):
    bless(scored({"a": 4.0, "b": 3.0}))
    allowing = gate(allowed=("torch", "device"))
    same = changed(scored({"a": 4.0, "b": 3.0}), "environment", torch="2.12.0")
    assert allowing.judge(same, MEASURED, STRICT) == PASSED
    drifted = changed(scored({"a": 9.0, "b": 3.0}), "environment", torch="2.12.0")
    assert "drifted from its baseline" in allowing.judge(drifted, MEASURED, STRICT).text


@pytest.mark.parametrize("version", ["0.1.0+de4aeb67", "9.9.9+m99"])
def test_any_version_of_the_harness_is_compared(bless, gate, manifest, version):
    bless(manifest)
    later = changed(manifest, "environment", harness=version)
    assert gate().judge(later, MEASURED, STRICT) == PASSED


def test_baseline_is_selected_under_the_budget_of_the_case(bless, gate, manifest):
    bless(manifest)
    measured = with_budget(manifest, 12.0)
    assert {name for name, layer in measured.layers.items() if layer.selected} != {
        name for name, layer in manifest.layers.items() if layer.selected
    }
    assert gate().judge(measured, MEASURED, STRICT) == PASSED
    layers = {name: replace(layer, selected=True) for name, layer in measured.layers.items()}
    verdict = gate().judge(replace(measured, layers=layers), MEASURED, STRICT)
    assert "1 group selected otherwise under the bit budget" in verdict.text


# A case without a baseline


@pytest.mark.parametrize(("missing", "outcome"), [("fail", "failed"), ("skip", "skipped")])
def test_case_without_a_baseline_fails_or_is_skipped(
    bless, gate, folder, manifest, other, missing, outcome
):
    bless(other)
    assert gate(missing=missing).judge(manifest, MEASURED, LOOSE) == Verdict(
        outcome=Outcome(outcome),
        text=f"{CASE} has no baseline at {folder / manifest.path}; write it with "
        "--aq-update-baseline, or choose --aq-baseline-missing skip or write",
    )
    assert files(folder) == {other.path.as_posix()}


def test_missing_write_keeps_existing_baselines(bless, gate, scored, folder):
    blessed = scored({"a": 4.0})
    bless(blessed)
    verdict = gate(missing="write").judge(scored({"a": 9.0}), MEASURED, STRICT)
    assert verdict.outcome is Outcome.FAILED
    assert read_manifest(folder / blessed.path) == blessed


@pytest.mark.parametrize(("missing", "exists"), [("fail", False), ("skip", True)])
def test_folder_without_manifests_is_refused(gate, folder, missing, exists):
    if exists:
        folder.mkdir()
    with pytest.raises(RecordError) as caught:
        gate(missing=missing)
    assert str(caught.value) == (
        f"--aq-baseline {folder}: the folder has no manifest; write the first ones with "
        "--aq-update-baseline"
    )


@pytest.mark.parametrize("options", WRITING)
def test_first_baseline_needs_no_folder(gate, folder, manifest, options):
    assert gate(**options).judge(manifest, MEASURED, STRICT) == PASSED
    assert files(folder) == {manifest.path.as_posix()}
    assert read_manifest(folder / manifest.path) == manifest


def test_two_baselines_of_one_case_are_refused(bless, gate, manifest):
    first, second = bless(manifest), bless(manifest, below="zz")
    with pytest.raises(RecordError) as caught:
        gate()
    assert str(caught.value) == f"two baselines of {CASE}: {first} and {second}; delete one"


def test_unreadable_baseline_is_refused(bless, gate, manifest):
    path = bless(manifest)
    path.write_text("{")
    with pytest.raises(RecordError) as caught:
        gate()
    assert str(caught.value).startswith(f"{path}: is not JSON: ")


# Updating


@pytest.mark.parametrize("below", ["", "by/hand"])
def test_update_replaces_the_baseline_in_its_folder(bless, gate, scored, folder, below):
    path = bless(scored({"a": 4.0}), below=below)
    drifted = changed(scored({"a": 9.0}), "environment", torch="2.12.0")
    assert gate(update=True).judge(drifted, MEASURED, STRICT) == PASSED
    assert files(folder) == {path.relative_to(folder).as_posix()}
    assert read_manifest(path) == drifted
    assert gate().judge(drifted, MEASURED, STRICT) == PASSED


@pytest.mark.parametrize("options", WRITING)
def test_unwritable_folder_is_found_before_and_fails_the_case(gate, folder, manifest, options):
    opened = gate(**options)
    folder.write_text("a file in the way")
    with pytest.raises(WriteError, match=f"^baseline folder {folder}: .* --aq-baseline$"):
        opened.check()
    verdict = opened.judge(manifest, MEASURED, STRICT)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.text.startswith(f"{folder / manifest.path}: cannot be written: ")


# Skips


def test_skipped_case_with_a_baseline_fails(bless, gate, manifest):
    path = bless(manifest)
    assert gate().judge_skip(CASE, "needs-cuda: no CUDA") == Verdict(
        outcome=Outcome.FAILED,
        text=f"{CASE} is skipped but has a baseline: needs-cuda: no CUDA\n"
        f"baseline: {path}\nif the skip is right, delete the baseline",
    )


def test_skipped_case_passes_without_a_baseline_and_when_baselines_are_updated(
    bless, gate, manifest
):
    path = bless(manifest)
    assert gate().judge_skip("toy/other", "needs-cuda: no CUDA") == PASSED
    assert gate(update=True).judge_skip(CASE, "needs-cuda: no CUDA") == PASSED
    assert read_manifest(path) == manifest


def test_baseline_whose_copies_of_a_score_disagree_is_refused_with_both_values(bless, gate, scored):
    path = bless(scored({"a": 4.0, "b": 3.0}))
    document = json.loads(path.read_text())
    document["layer_sensitivity"]["a.quant_recipe"]["importance"] *= 1.5
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError) as caught:
        gate()
    assert str(caught.value).startswith(
        f"{path}: is not a valid manifest: group 'a.quant_recipe': importance in "
        "layer_sensitivity is 6.0, but sensitivity_ranking says 4.0"
    )
