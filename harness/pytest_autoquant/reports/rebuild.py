"""Rebuilding every report of a folder from the records in it, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.layout import find_manifests, find_unpublished
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
from pytest_autoquant.reports.folder import read_folder
from pytest_autoquant.reports.markdown.session.sentences import counts_sentence
from pytest_autoquant.reports.ownership import refuse_foreign_files
from pytest_autoquant.reports.page.render import PAGE
from pytest_autoquant.reports.session_results import SessionResults, caution
from pytest_autoquant.reports.write import (
    draw_layer_maps,
    write_folder_reports,
    write_layer_reports,
)
from pytest_autoquant.text import counted


def rebuild(root: Path) -> SessionResults:
    """Write every report under ``root`` again, from what ``folder.read_folder`` returns.

    Files beside a manifest from before the harness are left as they are.

    Raises:
        RecordError: the folder holds no record; nothing is written or deleted then.
        WriteError: a report cannot be written, or would replace a file of somebody else.
    """
    if not find_manifests(root) and not _has_outcomes(root):
        raise RecordError(f"{root}: holds no manifest; run some cases first")
    refuse_foreign_files(root)
    results = read_folder(root, partial(_write_case_reports, root))
    write_folder_reports(root, results)
    return results


def _has_outcomes(root: Path) -> bool:
    """Return whether a folder without manifests has a session's other records."""
    results = read_folder(root)
    return not results.is_empty or results.last_run is not None


def _write_case_reports(root: Path, path: Path, manifest: Manifest, case: CaseResult) -> None:
    write_layer_reports(path.parent, manifest, case)
    draw_layer_maps(root, [case], again=True)


def rebuilt_report(root: Path, results: SessionResults) -> str:
    """Return the files left out by name and number, the counts and the page's path."""
    left_out = [f"left out: {reason}" for reason in results.left_out]
    counts = counts_sentence(results)
    if left_out:
        counts += f", {counted(len(left_out), 'file')} left out"
    lines = [*left_out, *unpublished_lines(root), *filter(None, [caution(results)])]
    return "\n".join([*lines, f"{root}: {counts}", f"wrote {root / PAGE}"])


def unpublished_lines(root: Path) -> Iterator[str]:
    """Yield one line per folder whose manifests are not read because it is not published."""
    counts = Counter(path.relative_to(root).parts[0] for path in find_unpublished(root))
    for folder, count in counts.items():
        yield (
            f"not read: {counted(count, 'manifest')} under {root / folder}, which is not "
            "published; pass that folder to read them"
        )
