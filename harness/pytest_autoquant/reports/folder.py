"""What a report folder holds: the results of every run that wrote to it.

A case is in one of these states, from the manifests, the outcome log and the last summary:

- measured: it has a manifest, whatever skipped it before or after;
- measured, and its last attempt failed: it has a manifest, and the log has a later error;
- skipped or failed: the log has its last outcome;
- lost: the last run expected it and it sent no outcome.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.layout import find_schemes
from pytest_autoquant.manifests.records import outcome_log
from pytest_autoquant.manifests.records.outcome_log import LoggedOutcome
from pytest_autoquant.manifests.records.outcomes import KeptCase, StructureCheck
from pytest_autoquant.manifests.records.scheme_manifest import read_scheme_manifest
from pytest_autoquant.manifests.records.session_summary import (
    SUMMARY_JSON,
    SessionSummary,
    read_summary,
)
from pytest_autoquant.reports.found_cases import Visit, find_cases
from pytest_autoquant.reports.session_results import SessionResults, last_run_of


def read_folder(root: Path, visit: Visit | None = None) -> SessionResults:
    """Return everything under a report folder.

    ``SessionResults.left_out`` names the files that cannot be read, and why.

    Args:
        visit: called with the path, the manifest and the result of every case of this harness.
    """
    folder = SessionResults()
    _add_manifests(folder, root, visit=visit)
    _add_schemes(folder, root)
    summary = _last_summary(folder, root)
    add_outcomes(folder, _logged(folder, root, summary))
    if summary is not None:
        _add_last_run(folder, summary)
    folder.sort()
    return folder


def cover(root: Path, session: SessionResults) -> SessionResults:
    """Return what a report folder holds once ``session`` has ended.

    Manifests that the session wrote or kept are not read again.
    """
    folder = SessionResults(cases=dict(session.cases), schemes=dict(session.schemes))
    _add_manifests(folder, root)
    _add_schemes(folder, root)
    summary = _last_summary(folder, root)
    touched = session.case_ids
    earlier = _logged(folder, root, summary)
    add_outcomes(folder, [line for line in earlier if _case_id(line) not in touched])
    add_outcomes(folder, [*session.skips.values(), *session.errors.values()])
    folder.structures |= session.structures
    if summary is not None:
        folder.gated = {
            case_id: why
            for case_id, why in summary.gated.items()
            if case_id in folder.case_ids and case_id not in touched
        }
    folder.gated |= session.gated
    folder.left_out += session.left_out
    folder.reruns, folder.kept, folder.lost = session.reruns, session.kept, session.lost
    folder.written, folder.write_errors = session.written, session.write_errors
    folder.command, folder.shard = session.command, session.shard
    folder.last_run = last_run_of(session)
    folder.sort()
    return folder


def read_outcomes(root: Path, summary: SessionSummary) -> tuple[LoggedOutcome, ...]:
    """Return the outcomes without a manifest; from the summary where the folder has no log.

    Raises:
        RecordError: the log cannot be read.
    """
    return _outcomes(root, outcome_log.read(root), summary)


def _outcomes(
    root: Path, logged: tuple[LoggedOutcome, ...], summary: SessionSummary
) -> tuple[LoggedOutcome, ...]:
    if (root / outcome_log.OUTCOME_LOG).is_file():
        return logged
    return (*summary.skipped, *summary.errors, *summary.structure)


def expected_summary(root: Path, session: SessionResults) -> SessionSummary:
    """Return the summary of a session that has only begun: its cases are lost until they end.

    The folder's other entries stay as the last summary has them; no manifest is read.
    """
    before = _last_summary(SessionResults(), root) or SessionSummary(
        cases=(), skipped=(), errors=(), structure=()
    )
    return replace(
        before,
        counts=replace(before.counts, kept=0, lost=len(session.lost)),
        shard=session.shard,
        command=session.command,
        last_run=replace(last_run_of(session), is_finished=False, seconds=None),
        reruns={},
        kept=(),
        lost=session.lost,
        write_errors=(),
    )


def _add_manifests(folder: SessionResults, root: Path, *, visit: Visit | None = None) -> None:
    """Add every case but those of ``folder``, whose manifests need not be read."""
    found = find_cases(root, known=folder.cases, visit=visit)
    folder.cases = found.by_id()
    folder.left_out += found.left_out


def _add_schemes(folder: SessionResults, root: Path) -> None:
    known = {root / scheme.path for scheme in folder.schemes.values()}
    for path in find_schemes(root):
        if path in known:
            continue
        try:
            scheme = read_scheme_manifest(path, root)
        except RecordError as error:
            folder.left_out.append(str(error))
        else:
            folder.schemes.setdefault(scheme.case_id, scheme)


def _last_summary(folder: SessionResults, root: Path) -> SessionSummary | None:
    path = root / SUMMARY_JSON
    if not path.is_file():
        return None
    try:
        return read_summary(path)
    except RecordError as error:
        folder.left_out.append(_below(root, error))
        return None


def _logged(
    folder: SessionResults, root: Path, summary: SessionSummary | None
) -> tuple[LoggedOutcome, ...]:
    empty = SessionSummary(cases=(), skipped=(), errors=(), structure=())
    try:
        folder.logged = outcome_log.read(root)
    except RecordError as error:
        folder.logged = None
        folder.left_out.append(_below(root, error))
        return ()
    return _outcomes(root, folder.logged, summary or empty)


def _below(root: Path, error: RecordError) -> str:
    return str(error).removeprefix(f"{root}{os.sep}")


def add_outcomes(folder: SessionResults, outcomes: Iterable[LoggedOutcome]) -> None:
    """Add outcomes without a manifest, each newer than what ``folder`` has of its case."""
    for line in outcomes:
        if not isinstance(line, KeptCase):
            folder.add(line)


def _case_id(line: LoggedOutcome) -> str | None:
    return None if isinstance(line, StructureCheck) else line.case_id


def _add_last_run(folder: SessionResults, summary: SessionSummary) -> None:
    """Take from the last summary what only it records."""
    known = folder.case_ids
    folder.gated = {case: why for case, why in summary.gated.items() if case in known}
    folder.lost = summary.lost
    if summary.last_run is None or not summary.last_run.is_finished:
        folder.lost = _without(summary.lost, known)
    folder.reruns = dict(summary.reruns)
    folder.kept = set(summary.kept)
    folder.command, folder.shard = summary.command, summary.shard
    folder.last_run = summary.last_run


def _without(case_ids: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    return tuple(case_id for case_id in case_ids if case_id not in known)
