"""Rebuilding every report of a folder from the records in it, without torch."""

from __future__ import annotations

from pathlib import Path

from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.layout import MANIFEST_SUFFIX
from pytest_autoquant.manifests.sensitivity_manifest import Manifest
from pytest_autoquant.reports.folder import read_folder
from pytest_autoquant.reports.page.render import PAGE
from pytest_autoquant.reports.session_report import counts_sentence
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_folder_reports, write_layer_reports


def rebuild(root: Path) -> SessionResults:
    """Write every report under ``root`` again, from what ``folder.read_folder`` returns.

    Files beside a manifest from before the harness are left as they are.

    Raises:
        WriteError: a report cannot be written.
    """
    results = read_folder(root, _write_layer_reports)
    if results.is_empty and not results.left_out:
        results.left_out.append(f"no *{MANIFEST_SUFFIX} is here; run some cases first")
    write_folder_reports(root, results)
    return results


def _write_layer_reports(path: Path, manifest: Manifest, case: CaseResult) -> None:
    write_layer_reports(path.parent, manifest, case)


def rebuilt_report(root: Path, results: SessionResults) -> str:
    """Return the files left out, the counts and the page's path, one line each."""
    left_out = (f"left out: {reason}" for reason in results.left_out)
    return "\n".join([*left_out, f"{root}: {counts_sentence(results)}", f"wrote {root / PAGE}"])
