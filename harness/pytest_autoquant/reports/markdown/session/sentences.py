"""What a session or a folder holds, in sentences: counts, the last run, a problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pytest_autoquant.manifests.records.outcomes import FailedCase
from pytest_autoquant.manifests.records.session_summary import (
    LastRun,
    OutcomeCounts,
)
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.text import counted, shown_duration, shown_time


def counts_sentence(results: SessionResults) -> str:
    """Return the counts: measured, aliases, failed, skipped by status, structure cases."""
    statuses: Counter[str] = Counter()
    for status, _, count in results.skip_counts():
        statuses[status] += count
    why = ", ".join(f"{status} {count}" for status, count in statuses.items())
    counts = results.counts
    parts = [
        f"{counts.measured} measured",
        counted(counts.alias, "alias"),
        f"{counts.failed} failed",
        f"{counts.skipped} skipped" + (f" ({why})" if why else ""),
        counted(counts.structure, "structure case"),
    ]
    return ", ".join([*parts, *_rare_counts(counts)])


def _rare_counts(counts: OutcomeCounts) -> Iterator[str]:
    if counts.schemes:
        yield f"{counted(counts.schemes, 'scheme')} derived"
    for count, what in (
        (counts.kept, "kept from an earlier run"),
        (counts.gated, "stopped by the gate"),
        (counts.lost, "lost"),
    ):
        if count:
            yield f"{count} {what}"


def last_run_sentences(results: SessionResults) -> tuple[str, ...]:
    """Return one sentence on the last run into the folder, if it is known."""
    if results.last_run is None:
        return ()
    rest = (
        "every outcome here is from it."
        if results.is_from_one_run
        else "all other outcomes here are from earlier runs."
    )
    return (f"Last run: {_run(results.last_run)}{_when(results.last_run)}; {rest}",)


def _when(run: LastRun) -> str:
    if run.started is None:
        return ""
    took = "" if run.seconds is None else f", took {shown_duration(run.seconds)}"
    return f", started {shown_time(run.started)}{took}"


def _run(run: LastRun) -> str:
    counts = run.counts
    common = (
        (counts.measured, f"{counts.measured} measured"),
        (counts.alias, counted(counts.alias, "alias")),
        (counts.failed, f"{counts.failed} failed"),
        (counts.skipped, f"{counts.skipped} skipped"),
        (counts.structure, counted(counts.structure, "structure case")),
    )
    parts = [what for count, what in common if count]
    shard = "" if run.shard is None else f"shard {run.shard}, "
    return shard + (", ".join([*parts, *_rare_counts(counts)]) or "no case")


def run_of(results: SessionResults, case_id: str) -> str:
    """Return whether the outcome of a case is from the ``last`` run or an ``earlier`` one."""
    last = results.last_run
    return "last" if last is None or case_id in last.cases else "earlier"


def problem_of(results: SessionResults, failure: FailedCase) -> str:
    """Return what was wrong, and whether the case has scores from before it failed."""
    if failure.case_id in results.errors and failure.case_id in results.cases:
        return f"{failure.problem} (the scores shown were measured before it failed)"
    return failure.problem
