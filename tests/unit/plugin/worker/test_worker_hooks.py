"""What a worker selects, skips and attaches to test reports, in real runs on the embedded model."""

import json
import re
from pathlib import Path

import pytest
from builders import files_in
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.outcomes import FailedCase, KeptCase, SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import load_manifest, read_manifest
from pytest_autoquant.plugin.messages.outcome import (
    Checked,
    Failed,
    Kept,
    MeasuredCase,
    Refused,
    Skipped,
    load_report,
)
from pytest_autoquant.scoring.runner import MeasurementRunner

#: Hypothesis would be imported again in every run, which takes longer than the run.
QUICK = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")

CASE = "tiny-qwen3-vl/wint8_afp16/default/small/gradient"
INT8 = ("--aq-pairs=wint8_afp16", "--aq-granularities=default", "--aq-sizes=small")
MEASURE = "def test_it(aq_case, aq_measure):\n    aq_measure(aq_case)\n"


@pytest.fixture
def run(pytester):
    """Run a test file with these arguments; return the reports that end a test."""

    def run_tests(source, *arguments):
        pytester.makepyfile(test_mine=f"import pytest\n\n{source}")
        addopts = (*QUICK, "--aq-device=cpu", "--aq-score-size=4")
        recorded = pytester.inline_run(*addopts, *arguments)
        reports = recorded.getreports("pytest_runtest_logreport")
        return [r for r in reports if r.when == "call" or (r.when == "setup" and not r.passed)]

    return run_tests


def outcomes_of(report):
    """What the worker attached to a report."""
    return load_report(report.autoquant).outcomes


# Selection


def test_tests_are_parametrized_over_what_they_ask_for(pytester):
    path = pytester.makepyfile(
        """
        def test_case(aq_case): pass
        def test_combination(aq_combination): pass
        def test_scheme(aq_scheme): pass
        def test_other(): pass
        """
    )
    items, _ = pytester.inline_genitems(
        path,
        *QUICK,
        "--aq-pairs=wint8_aint8,wint4_aint8",
        "--aq-granularities=default",
        "--aq-sizes=small",
        "--aq-schemes=fp8_autoquant_full",
    )
    assert [item.name for item in items] == [
        "test_case[wint8_aint8-default-small]",
        "test_case[wint4_aint8-default-small]",
        "test_combination[wint8_aint8-default]",
        "test_combination[wint4_aint8-default]",
        "test_scheme[fp8_autoquant_full]",
        "test_other",
    ]
    is_experimental = [item.get_closest_marker("aq_experimental") is not None for item in items]
    assert is_experimental == [False, True, False, True, False, False]


MARKED = """
@pytest.mark.aq_gpu
def test_gpu(aq_case): pass

@pytest.mark.aq_structure
def test_structure(aq_combination): pass

def test_other(): pass
"""


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--aq-gpu-only", ["gpu[int8-small]", "gpu[int4-small]"]),
        ("--aq-structure-only", ["structure[int8]", "structure[int4]"]),
        ("--aq-shard=1/2", ["gpu[int8-small]", "structure[int8]", "other"]),
        ("--aq-shard=2/2", ["gpu[int4-small]", "structure[int4]", "other"]),
    ],
)
def test_options_deselect_what_they_leave_out(run, option, names):
    pairs = "--aq-pairs=wint8_afp16,wint4_afp16"
    reports = run(MARKED, pairs, "--aq-granularities=default", "--aq-sizes=small", option)
    assert [
        re.sub(r"^.*::test_|(?<=\[)w|_afp16-default", "", report.nodeid) for report in reports
    ] == names


# Measuring


def test_measured_manifest_and_tolerances_are_attached(run):
    (report,) = run(f"@pytest.mark.aq_tolerance(group=0.5, selected=3)\n{MEASURE}", *INT8)
    attached = load_report(report.autoquant)
    (outcome,) = attached.outcomes
    assert report.passed
    assert isinstance(outcome, MeasuredCase)
    assert load_manifest(outcome.manifest, source="x").case.case_id == CASE
    assert (attached.tolerances, outcome.rerun) == ({"group": 0.5, "selected": 3}, None)
    assert report.autoquant_state is None


def test_search_state_is_attached_on_request(run):
    (report,) = run(MEASURE, *INT8, "--aq-save-state")
    assert len(report.autoquant_state) > 1000


def test_case_that_fails_after_it_was_measured_keeps_its_manifest(run):
    (report,) = run(f"{MEASURE}    assert False\n", *INT8)
    assert report.failed
    assert [type(outcome) for outcome in outcomes_of(report)] == [MeasuredCase]


def test_several_named_cases_of_one_test_are_attached_in_order(run):
    source = """
def test_it(aq_measure):
    for granularity in ("w_per_tensor", "default"):
        manifest = aq_measure(f"wint8_afp16-{granularity}-small")
        assert manifest.case.granularity == granularity
"""
    (report,) = run(source)
    manifests = [load_manifest(o.manifest, source="x") for o in outcomes_of(report)]
    assert [m.case.granularity for m in manifests] == ["w_per_tensor", "default"]


def test_unknown_named_case_fails_with_the_message_alone(run):
    (report,) = run('def test_it(aq_measure):\n    aq_measure("wint4_aint9-default-small")\n')
    assert report.failed
    assert report.longreprtext.startswith("pair 'wint4_aint9' is unknown")
    assert "Traceback" not in report.longreprtext
    assert not hasattr(report, "autoquant")


def test_model_that_cannot_be_loaded_fails_its_case_with_the_message_alone(run, pytester):
    folder = pytester.mkdir("broken")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    (report,) = run(MEASURE, *INT8, f"--aq-model={folder}")
    assert report.failed
    (outcome,) = outcomes_of(report)
    problem = report.longreprtext
    case_id = CASE.replace("tiny-qwen3-vl", "broken")
    assert outcome == Failed(case=FailedCase(case_id=case_id, problem=problem))
    assert "broken" in problem
    assert "Traceback" not in problem


def test_failure_in_the_library_has_its_traceback_in_a_section(run):
    """A case that a test builds itself is not checked for support, so MXFP4 raises on the CPU."""
    source = """
def test_it(aq_measure, request):
    from pytest_autoquant.plugin.pytest_config import plan_of
    aq_measure(plan_of(request.config).case_named("wfp4_afp16-default-small"))
"""
    (report,) = run(source)
    (outcome,) = outcomes_of(report)
    assert isinstance(outcome, Failed)
    assert outcome.case.problem == report.longreprtext
    ((_, trace),) = [s for s in report.sections if "traceback" in s[0]]
    assert "Traceback (most recent call last)" in trace


def test_structure_check_is_attached(run):
    source = "def test_it(aq_combination, aq_check):\n    aq_check(aq_combination)\n"
    (report,) = run(source, *INT8)
    (outcome,) = outcomes_of(report)
    assert isinstance(outcome, Checked)
    assert (outcome.check.pair, outcome.check.status) == ("wint8_afp16", "supported")


# Skipping


@pytest.mark.parametrize(
    ("pair", "granularity", "status", "bits"),
    [
        ("wfp4_afp16", "default", "needs-cuda", 4.25),
        ("wint8_afp16", "a_per_token_dynamic", "no-effect", 8 + 32 * (3 / 4 / 128 + 1 / 4 / 384)),
    ],
)
def test_case_that_cannot_run_is_skipped_with_its_status(run, pair, granularity, status, bits):
    arguments = [f"--aq-pairs={pair}", f"--aq-granularities={granularity}", "--aq-sizes=small"]
    (report,) = run(MEASURE, *arguments)
    (outcome,) = outcomes_of(report)
    assert (report.skipped, report.when) == (True, "setup")
    assert outcome == Skipped(
        case=SkippedCase(
            case_id=f"tiny-qwen3-vl/{pair}/{granularity}/small/gradient",
            status=status,
            reason=outcome.case.reason,
            effective_bits=bits,
        )
    )
    path, line, reason = report.longrepr
    assert (Path(path).name, line) == ("test_mine.py", 3)
    assert reason == f"Skipped: {status}: {outcome.case.reason}"


def test_named_case_that_cannot_run_skips_its_test(run):
    (report,) = run('def test_it(aq_measure):\n    aq_measure("wfp4_afp16-default-small")\n')
    (outcome,) = outcomes_of(report)
    assert (report.skipped, report.when) == (True, "call")
    assert isinstance(outcome, Skipped)
    assert outcome.case.status == "needs-cuda"


@pytest.mark.parametrize(
    "marker",
    [
        'skip(reason="not today")',
        'skipif(True, reason="not today")',
        'skipif("1 > 0", reason="not today")',
        'xfail(run=False, reason="not today")',
    ],
)
def test_case_that_a_marker_skips_asks_nobody_and_attaches_nothing(run, monkeypatch, marker):
    asked = []
    monkeypatch.setattr(MeasurementRunner, "support", lambda runner, case: asked.append(case))
    (report,) = run(f"@pytest.mark.{marker}\n{MEASURE}", *INT8)
    assert report.skipped
    assert not hasattr(report, "autoquant")
    assert asked == []


def test_wrong_tolerance_fails_before_anything_is_measured(run):
    (report,) = run(f"@pytest.mark.aq_tolerance(grup=0.5)\n{MEASURE}", *INT8)
    assert (report.failed, report.when) == (True, "setup")
    assert "grup" in report.longreprtext
    assert not hasattr(report, "autoquant")


def test_random_weights_of_another_seed_leave_the_first_ones_results_as_they_are(run, pytester):
    random = (MEASURE, *INT8, "--aq-weights=random")
    run(*random)
    root = pytester.path / "reports" / "tmp"
    before = files_in(root)
    (report,) = run(*random, "--aq-seed=1")
    assert report.failed
    assert outcomes_of(report) == (Refused(problem=report.longreprtext),)
    assert "of another model of this name: tiny-qwen3-vl-random/" in report.longreprtext
    assert files_in(root).keys() == before.keys()  # no outcome log
    (case,) = json.loads((root / "summary.json").read_text())["cases"]
    assert case == json.loads(before["summary.json"])["cases"][0]
    (kept,) = run(*random, "--aq-resume")
    assert isinstance(outcomes_of(kept)[0], Kept)


# Resuming


def test_resumed_run_keeps_a_case_and_says_what_changed(run, pytester):
    run(MEASURE, *INT8)
    (report,) = run(MEASURE, *INT8, "--aq-resume")
    assert report.longrepr[2] == "Skipped: kept: measured before on the same inputs"
    assert outcomes_of(report) == (Kept(case=KeptCase(case_id=CASE)),)
    (report,) = run(MEASURE, *INT8, "--aq-resume", "--aq-effective-bits=9")
    assert outcomes_of(report) == (Kept(case=KeptCase(case_id=CASE)),)
    (manifest,) = map(read_manifest, find_manifests(pytester.path / "reports" / "tmp"))
    assert manifest.autoquant_state.constraints.effective_bits == 9
    (report,) = run(MEASURE, *INT8, "--aq-resume", "--aq-score-size=3")
    (outcome,) = outcomes_of(report)
    captions = re.sub("captions .*?, ", "", outcome.rerun)
    assert (report.passed, captions) == (True, "score_size 4 -> 3")
