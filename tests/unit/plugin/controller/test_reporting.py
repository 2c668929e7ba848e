"""Pytest's reports: how a test ended, and the gate's verdict on it."""

import pytest
from builders import run_plan
from pytest_autoquant.plugin.controller.collector import Collector, TestEnd
from pytest_autoquant.plugin.controller.reporting import apply_verdict, closing_lines, end_of
from pytest_autoquant.plugin.messages.collected import CollectedCases
from pytest_autoquant.regression.baselines import PASSED, Outcome, Verdict


def report(outcome, longrepr=None, *, when="call", **values):
    """A report of the test ``a.py::test_it`` in line 8 of its file."""
    return pytest.TestReport(
        nodeid="a.py::test_it",
        location=("a.py", 7, "test_it"),
        keywords={},
        outcome=outcome,
        longrepr=longrepr,
        when=when,
        **values,
    )


def crash(text):
    """What pytest shows of a test that raised."""
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        return pytest.ExceptionInfo.from_exception(error).getrepr()


@pytest.mark.parametrize(
    ("ended", "failure", "skip_reason"),
    [
        (report("passed"), None, None),
        (report("failed", crash("no memory\nat all")), "RuntimeError: no memory", None),
        (report("failed", "\n\nworker 'gw0' crashed\n"), "worker 'gw0' crashed", None),
        (report("failed", ""), "failed", None),
        (report("failed", "x" * 1000), "x" * 300 + "...", None),
        (report("skipped", ("a.py", 8, "Skipped: no CUDA"), when="setup"), None, "no CUDA"),
        (report("skipped", ("a.py", 8, "Skipped: ")), None, "by a marker"),
    ],
)
def test_end_of_a_test_is_its_first_line(ended, failure, skip_reason):
    expected = TestEnd(nodeid="a.py::test_it", failure=failure, skip_reason=skip_reason)
    assert end_of(ended) == expected


def test_end_of_a_test_has_what_its_worker_attached():
    ended = end_of(report("passed", autoquant="{}", autoquant_state=b"state"))
    assert (ended.outcomes, ended.state) == ("{}", b"state")


def test_passed_verdict_changes_nothing():
    failed = report("failed", "worker 'gw0' crashed", when="setup")
    apply_verdict(PASSED, failed)
    assert (failed.outcome, failed.when, failed.longrepr) == (
        "failed",
        "setup",
        "worker 'gw0' crashed",
    )


def test_failed_verdict_fails_a_skipped_test_in_its_call():
    skipped = report("skipped", ("a.py", 8, "Skipped: no CUDA"), when="setup")
    apply_verdict(Verdict(outcome=Outcome.FAILED, text="has a baseline"), skipped)
    assert (skipped.failed, skipped.when, skipped.longreprtext) == (True, "call", "has a baseline")


def test_skipped_verdict_skips_a_passed_test_at_its_place():
    passed = report("passed")
    apply_verdict(Verdict(outcome=Outcome.SKIPPED, text="no baseline"), passed)
    assert passed.skipped
    assert passed.longrepr == ("a.py", 8, "Skipped: no baseline")


def test_closing_lines_say_what_was_not_compared_and_how_to_measure_what_is_missing(tmp_path):
    plan = run_plan(tmp_path, baseline=str(tmp_path / "blessed"), update_baseline=True)
    collector = Collector(plan)
    collector.expect(CollectedCases(cases={"a.py::t[x]": "m/p/g/small/gradient"}, num_selected=1))
    collector.finish()
    *_, gate, resume = closing_lines(collector)
    assert gate == "--aq-baseline: no case was compared with a baseline, so the gate fails"
    assert resume == "run the same command with --aq-resume to measure what is missing"
