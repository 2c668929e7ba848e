"""Pytest's test reports: how a test ended, and the gate's verdict on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_autoquant.plugin.controller.collector import Collector, TestEnd
from pytest_autoquant.regression.baselines import Outcome, Verdict
from pytest_autoquant.text import one_line

if TYPE_CHECKING:
    import pytest

_LONGEST_FAILURE = 300


def end_of(report: pytest.TestReport) -> TestEnd:
    """Return how the final attempt of a test ended."""
    is_expected_failure = report.skipped and hasattr(report, "wasxfail")
    is_skipped = report.skipped and not is_expected_failure
    return TestEnd(
        nodeid=report.nodeid,
        failure=_failure(report) if report.failed else None,
        skip_reason=_skip_reason(report) if is_skipped else None,
        is_expected_failure=is_expected_failure,
        outcomes=getattr(report, "autoquant", None),
        state=getattr(report, "autoquant_state", None),
    )


def apply_verdict(verdict: Verdict, report: pytest.TestReport) -> None:
    """Let a test fail, or skip its comparison, as the gate says."""
    if verdict.outcome is Outcome.PASSED:
        return
    report.outcome = verdict.outcome.value
    report.when = "call"  # a skip arrives from the setup, where a failure would be an error
    if verdict.outcome is Outcome.FAILED:
        report.longrepr = verdict.text
    else:
        path, line, _ = report.location
        report.longrepr = (path, (line or 0) + 1, f"Skipped: {verdict.text}")


def closing_lines(collector: Collector) -> Iterator[str]:
    """Yield what the terminal shows of a finished run."""
    from pytest_autoquant.reports.terminal_report import terminal_lines

    yield from terminal_lines(collector.results)
    if collector.compared_nothing:
        yield "--aq-baseline: no case was compared with a baseline, so the gate fails"
    if collector.results.lost:
        yield "run the same command with --aq-resume to measure what is missing"


def _failure(report: pytest.TestReport) -> str:
    crash: Any = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    lines = [line for line in str(text).splitlines() if line.strip()]
    return one_line(lines[0] if lines else "failed", _LONGEST_FAILURE)


def _skip_reason(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    reason = longrepr[2] if isinstance(longrepr, tuple) else report.longreprtext
    return one_line(reason.removeprefix("Skipped: ") or "by a marker", _LONGEST_FAILURE)
