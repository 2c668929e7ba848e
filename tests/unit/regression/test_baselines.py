"""The regression gate: what it lets pass, what it stops, and what it says and writes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_autoquant.errors import RecordError, UsageError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest, read_manifest
from pytest_autoquant.options.settings import read_settings
from pytest_autoquant.regression.baselines import (
    PASSED,
    Baselines,
    Tolerances,
    Verdict,
    find_drifts,
)
from pytest_autoquant.regression.comparison import compare as compare_sensitivities

CASE = "toy/wint4_aint8/a_per_token_dynamic/small/gradient"
MEASURED = Path("reports/tmp/case.json")
LOOSE = Tolerances(spearman=-1.0, top_ten=0.0, total=math.inf, group=math.inf, selected=10**6)
STRICT = Tolerances(spearman=0.98, top_ten=0.9, total=0.02, group=0.1, selected=0)
ACCEPT = "if the change is right, accept it with --aq-update-baseline"


def settings_of(**given):
    return read_settings(lambda option: (given.get(option.name), option.flag))


def compare(before, after):
    """Compare two manifests."""
    return compare_sensitivities(case_result_of(before), case_result_of(after))


def changed(manifest, part, **values):
    """Return the manifest with some fields of one of its parts replaced."""
    return replace(manifest, **{part: replace(getattr(manifest, part), **values)})


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
    return lambda **given: Baselines(settings_of(baseline=str(folder), **given))


# Tolerances


def test_a_sessions_tolerances_are_its_options():
    given = settings_of(
        baseline="blessed",
        **{"tol_spearman": "0.5", "tol_top_ten": "0.4", "tol_total": "0.3"},
        **{"tol_group": "0.2", "tol_selected": "1"},
    )
    assert Tolerances.of(given) == Tolerances(
        spearman=0.5, top_ten=0.4, total=0.3, group=0.2, selected=1
    )


def test_a_marker_replaces_the_tolerances_it_names():
    assert STRICT.with_marker({"group": 0.5, "selected": 3}) == Tolerances(
        spearman=0.98, top_ten=0.9, total=0.02, group=0.5, selected=3
    )
    assert STRICT.with_marker({}) == STRICT


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"sperman": 0.9}, "sperman=0.9"),
        ({"group": "0.1"}, "group='0.1'"),
        ({"group": True}, "group=True"),
        ({"total": None}, "total=None"),
        ({"total": 0.1, "selected": [1]}, "selected=[1]"),
    ],
)
def test_a_marker_with_a_wrong_name_or_value_is_refused_with_what_is_allowed(given, shown):
    with pytest.raises(UsageError) as caught:
        STRICT.with_marker(given)
    assert str(caught.value) == (
        f"marker aq_tolerance: {shown} is not allowed; give numbers of at least 0 for group, "
        "selected, spearman, top_ten, total, a whole one for selected"
    )


def test_a_marker_that_would_let_everything_pass_is_refused():
    with pytest.raises(UsageError, match=r"^marker aq_tolerance: group=nan is not allowed"):
        STRICT.with_marker({"group": math.nan})


# What is a drift


@pytest.mark.parametrize(
    ("tightened", "before", "after", "said"),
    [
        (
            {"spearman": 0.98},
            {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0},
            {"a": 3.0, "b": 4.0, "c": 2.0, "d": 1.0},
            "rank correlation of the groups 0.8000, at least 0.98 wanted (--aq-tol-spearman)",
        ),
        (
            {"top_ten": 0.9},
            {"g0": 1.0, "a": 5.0, "b": 5.0, **{f"g{i}": 1.5 for i in range(1, 9)}, "z": 0.2},
            {"g0": 2.0, "a": 0.1, "b": 0.1, **{f"g{i}": 1.5 for i in range(1, 9)}, "z": 1.2},
            "80% of the ten most sensitive groups kept, at least 90% wanted (--aq-tol-top-ten)",
        ),
        (
            {"total": 0.02},
            {"a": 4.0, "b": 4.0},
            {"a": 4.0, "b": 5.0},
            "total score +12.50%, 2.00% allowed (--aq-tol-total)",
        ),
        (
            {"total": 0.02},
            {"a": 4.0, "b": 4.0},
            {"a": 4.0, "b": 3.0},
            "total score -12.50%, 2.00% allowed (--aq-tol-total)",
        ),
        (
            {"total": 0.02},
            {"a": 4.0, "b": 4.0},
            {"a": 4.0, "b": math.inf},
            "total score +inf%, 2.00% allowed (--aq-tol-total)",
        ),
        (
            {"group": 0.1},
            {"a": 4.0, "b": 4.0, "c": 4.0},
            {"a": 4.8, "b": 3.2, "c": 4.2},
            "2 of 3 groups drifted by more than 10.00% (--aq-tol-group)",
        ),
    ],
)
def test_each_measure_is_named_with_its_value_its_limit_and_its_option(
    scored, tightened, before, after, said
):
    tolerances = replace(LOOSE, **tightened)
    assert find_drifts(compare(scored(before), scored(after)), tolerances) == (said,)


def test_a_drift_of_just_what_is_allowed_passes(scored):
    comparison = compare(scored({"a": 4.0, "b": 4.0}), scored({"a": 5.0, "b": 4.0}))
    assert find_drifts(comparison, replace(LOOSE, group=0.25, total=0.125)) == ()


def test_groups_selected_otherwise_are_counted_against_their_limit(manifest):
    layers = {name: replace(layer, selected=True) for name, layer in manifest.layers.items()}
    comparison = compare(manifest, replace(manifest, layers=layers))
    assert find_drifts(comparison, replace(LOOSE, selected=1)) == ()
    assert find_drifts(comparison, replace(LOOSE, selected=0)) == (
        "1 groups selected otherwise under the bit budget, 0 allowed (--aq-tol-selected)",
    )


def test_new_and_vanished_groups_are_drifts_whatever_is_allowed(scored):
    comparison = compare(scored({"a": 1.0, "b": 1.0}), scored({"b": 1.0, "c": 1.0, "d": 1.0}))
    assert find_drifts(comparison, LOOSE) == (
        "2 groups new, such as c",
        "1 groups vanished, such as a",
    )


# A case and its baseline


def test_a_case_equal_to_its_baseline_passes(bless, gate, manifest):
    bless(manifest)
    assert gate().judge(manifest, MEASURED, STRICT) == PASSED == Verdict(outcome="passed")


def test_a_case_that_drifted_fails_with_what_where_and_how_to_accept_it(bless, gate, scored):
    path = bless(scored({"a": 4.0, "b": 3.0, "c": 2.0}))
    verdict = gate().judge(scored({"a": 5.0, "b": 3.0, "c": 2.0}), MEASURED, STRICT)
    assert verdict.outcome == "failed"
    assert verdict.text.splitlines() == [
        f"{CASE} drifted from its baseline:",
        "  total score +11.11%, 2.00% allowed (--aq-tol-total)",
        "  1 of 3 groups drifted by more than 10.00% (--aq-tol-group)",
        "worst groups, score per token:",
        "  a: 4 -> 5 (+25.00%), rank 1 -> 1",
        f"baseline: {path}",
        f"measured: {MEASURED}",
        ACCEPT,
    ]


def test_the_same_drift_passes_within_wider_tolerances(bless, gate, scored):
    bless(scored({"a": 4.0, "b": 3.0}))
    drifted = scored({"a": 5.0, "b": 3.0})
    wide = replace(STRICT, total=0.2, group=0.3)
    assert gate().judge(drifted, MEASURED, wide) == PASSED


def test_at_most_the_five_worst_groups_are_shown(bless, gate, scored):
    bless(scored({f"g{i}": 4.0 for i in range(8)}))
    verdict = gate().judge(scored({f"g{i}": 4.0 + i for i in range(8)}), MEASURED, STRICT)
    shown = [line.split(":")[0].strip() for line in verdict.text.splitlines() if " -> " in line]
    assert shown == ["g7", "g6", "g5", "g4", "g3"]


def test_a_baseline_without_a_finite_score_is_said_to_have_none(bless, gate, scored):
    bless(scored({"a": math.nan, "b": 1.0}))
    verdict = gate().judge(scored({"a": 1.0, "b": 1.0}), MEASURED, STRICT)
    assert "  a: not finite -> 1 (+inf%), rank 1 -> 1" in verdict.text.splitlines()


def test_a_baseline_is_found_by_its_case_wherever_it_lies(bless, gate, scored):
    path = bless(scored({"a": 4.0}), below="by/hand")
    verdict = gate().judge(scored({"a": 5.0}), MEASURED, STRICT)
    assert f"baseline: {path}" in verdict.text


def test_a_case_whose_measurement_failed_is_left_as_it_is(bless, gate, folder, manifest):
    failed = changed(manifest, "case", status="failed", problems=("out of memory",))
    bless(manifest)
    before = (folder / manifest.path).read_bytes()
    assert gate().judge(failed, MEASURED, STRICT) == PASSED
    assert gate(update_baseline=True).judge(failed, MEASURED, STRICT) == PASSED
    assert (folder / manifest.path).read_bytes() == before


# Measured on something else


def test_a_baseline_measured_on_something_else_is_refused_before_any_score(bless, gate, manifest):
    path = bless(manifest)
    after = changed(manifest, "environment", torch="2.12.0", device="cuda")
    verdict = gate().judge(after, MEASURED, LOOSE)
    assert verdict.outcome == "failed"
    assert verdict.text.splitlines() == [
        f"{CASE}: its baseline was measured on something else: device cpu -> cuda; "
        "torch 2.11.0 -> 2.12.0",
        "compare all the same with --aq-baseline-allow device,torch",
        f"baseline: {path}",
        f"measured: {MEASURED}",
        ACCEPT,
    ]


def test_what_is_allowed_to_differ_is_compared_all_the_same(bless, gate, scored):
    bless(scored({"a": 4.0, "b": 3.0}))
    here = changed(scored({"a": 4.0, "b": 3.0}), "environment", torch="2.12.0")
    allowing = gate(baseline_allow="torch,device")
    assert allowing.judge(here, MEASURED, STRICT) == PASSED
    drifted = changed(scored({"a": 9.0, "b": 3.0}), "environment", torch="2.12.0")
    assert "drifted from its baseline" in allowing.judge(drifted, MEASURED, STRICT).text


def test_only_what_is_not_allowed_is_refused(bless, gate, manifest):
    bless(manifest)
    after = changed(manifest, "environment", torch="2.12.0", device="cuda")
    text = gate(baseline_allow="torch").judge(after, MEASURED, LOOSE).text
    assert text.splitlines()[:2] == [
        f"{CASE}: its baseline was measured on something else: device cpu -> cuda",
        "compare all the same with --aq-baseline-allow device",
    ]


def test_another_version_of_the_harness_is_what_the_gate_judges(bless, gate, manifest):
    bless(manifest)
    later = changed(manifest, "environment", harness="9.9.9")
    assert gate().judge(later, MEASURED, STRICT) == PASSED


# A case without a baseline


@pytest.fixture
def other(manifest):
    """Another case, so that the folder is not empty."""
    return changed(manifest, "case", case_id="toy/other", granularity="default")


@pytest.mark.parametrize(("mode", "outcome"), [("fail", "failed"), ("skip", "skipped")])
def test_a_case_without_a_baseline_fails_or_is_skipped_as_asked_and_nothing_is_written(
    bless, gate, folder, manifest, other, mode, outcome
):
    bless(other)
    verdict = gate(baseline_missing=mode).judge(manifest, MEASURED, LOOSE)
    assert verdict == Verdict(
        outcome=outcome,
        text=f"{CASE}: has no baseline at {folder / manifest.path}; write it with "
        "--aq-update-baseline, or say --aq-baseline-missing skip or write",
    )
    assert files(folder) == {other.path.as_posix()}


def test_a_case_without_a_baseline_fails_unless_said_otherwise(bless, gate, manifest, other):
    bless(other)
    assert gate().judge(manifest, MEASURED, LOOSE).outcome == "failed"


def test_a_case_without_a_baseline_becomes_its_own_when_asked(gate, folder, manifest):
    assert gate(baseline_missing="write").judge(manifest, MEASURED, STRICT) == PASSED
    assert read_manifest(folder / manifest.path) == manifest


def test_a_missing_baseline_written_on_demand_leaves_those_there_are(bless, gate, scored, folder):
    blessed = scored({"a": 4.0})
    bless(blessed)
    gated = gate(baseline_missing="write").judge(scored({"a": 9.0}), MEASURED, STRICT)
    assert gated.outcome == "failed"
    assert read_manifest(folder / blessed.path) == blessed


@pytest.mark.parametrize("mode", ["fail", "skip"])
def test_a_folder_without_baselines_is_refused_with_how_to_write_the_first(gate, folder, mode):
    for _ in ("not there", "empty"):
        with pytest.raises(RecordError) as caught:
            gate(baseline_missing=mode)
        assert str(caught.value) == (
            f"--aq-baseline {folder}: holds no manifest; write the first ones with "
            "--aq-update-baseline"
        )
        folder.mkdir(exist_ok=True)


@pytest.mark.parametrize("options", [{"update_baseline": True}, {"baseline_missing": "write"}])
def test_the_first_baselines_need_no_folder(gate, folder, manifest, options):
    assert gate(**options).judge(manifest, MEASURED, STRICT) == PASSED
    assert files(folder) == {manifest.path.as_posix()}


def test_two_baselines_of_one_case_are_refused(bless, gate, manifest):
    first, second = bless(manifest), bless(manifest, below="zz")
    with pytest.raises(RecordError) as caught:
        gate()
    assert str(caught.value) == f"two baselines of {CASE}: {first} and {second}; delete one"


def test_a_baseline_that_cannot_be_read_is_refused_by_its_path(bless, gate, manifest):
    path = bless(manifest)
    path.write_text("{")
    with pytest.raises(RecordError) as caught:
        gate()
    assert str(caught.value).startswith(f"{path}: is not JSON: ")


# Updating


def test_an_update_writes_whatever_was_measured(bless, gate, scored, folder):
    bless(scored({"a": 4.0}))
    drifted = changed(scored({"a": 9.0}), "environment", torch="2.12.0")
    assert gate(update_baseline=True).judge(drifted, MEASURED, STRICT) == PASSED
    assert read_manifest(folder / drifted.path) == drifted
    assert gate().judge(drifted, MEASURED, STRICT) == PASSED


def test_an_update_replaces_a_baseline_where_it_lies(bless, gate, scored, folder):
    path = bless(scored({"a": 4.0}), below="by/hand")
    after = scored({"a": 9.0})
    gate(update_baseline=True).judge(after, MEASURED, STRICT)
    assert files(folder) == {path.relative_to(folder).as_posix()}
    assert read_manifest(path) == after


@pytest.mark.parametrize("options", [{"update_baseline": True}, {"baseline_missing": "write"}])
def test_a_baseline_that_cannot_be_written_fails_the_case(gate, folder, manifest, options):
    opened = gate(**options)
    folder.write_text("a file in the way")
    verdict = opened.judge(manifest, MEASURED, STRICT)
    assert verdict.outcome == "failed"
    assert verdict.text.startswith(f"{folder / manifest.path}: cannot be written: ")


# Skips


def test_a_case_that_is_skipped_now_and_was_measured_once_fails(bless, gate, manifest):
    path = bless(manifest)
    assert gate().judge_skip(CASE, "needs-cuda: no CUDA") == Verdict(
        outcome="failed",
        text=f"{CASE} used to be measured and is now skipped: needs-cuda: no CUDA\n"
        f"baseline: {path}\nif that is right, delete the baseline",
    )


def test_a_case_that_never_was_measured_may_be_skipped(bless, gate, manifest):
    bless(manifest)
    assert gate().judge_skip("toy/other", "needs-cuda: no CUDA") == PASSED


def test_an_update_lets_skips_pass_and_deletes_nothing(bless, gate, manifest):
    path = bless(manifest)
    assert gate(update_baseline=True).judge_skip(CASE, "needs-cuda: no CUDA") == PASSED
    assert json.loads(path.read_text())["case"]["case_id"] == CASE
