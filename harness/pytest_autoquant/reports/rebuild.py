"""Rebuilding every report of a folder from the records in it, without torch."""

from __future__ import annotations

from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.sensitivity_manifest import Manifest
from pytest_autoquant.reports.folder import read_folder
from pytest_autoquant.reports.ownership import refuse_foreign_files
from pytest_autoquant.reports.page.render import PAGE
from pytest_autoquant.reports.session_report import counts_sentence
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_folder_reports, write_layer_reports


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
    results = read_folder(root, _write_layer_reports)
    write_folder_reports(root, results)
    return results


def _has_outcomes(root: Path) -> bool:
    """Return whether a folder without manifests has a session's other records."""
    results = read_folder(root)
    return not results.is_empty or results.last_run is not None


def _write_layer_reports(path: Path, manifest: Manifest, case: CaseResult) -> None:
    write_layer_reports(path.parent, manifest, case)


def rebuilt_report(root: Path, results: SessionResults) -> str:
    """Return the files left out, the counts and the page's path, one line each."""
    left_out = (f"left out: {reason}" for reason in results.left_out)
    return "\n".join([*left_out, f"{root}: {counts_sentence(results)}", f"wrote {root / PAGE}"])
