"""Writing of manifests and reports, by the controller as results arrive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.case_result import CaseResult, case_result_of
from pytest_autoquant.manifests.layout import state_path
from pytest_autoquant.manifests.records import outcome_log
from pytest_autoquant.manifests.records.outcome_log import LoggedOutcome
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest, dump_manifest
from pytest_autoquant.manifests.records.session_summary import SUMMARY_JSON, dump_summary
from pytest_autoquant.regression.recorded_model import refuse_replacing
from pytest_autoquant.reports.charts.grid import GRID_FILES, grid_file
from pytest_autoquant.reports.charts.layer_map import draw_layer_map
from pytest_autoquant.reports.charts.static_svg import picture
from pytest_autoquant.reports.folder import cover, expected_summary
from pytest_autoquant.reports.markdown.case_report import (
    LAYERS_JSON,
    LAYERS_MARKDOWN,
    LAYERS_PICTURE,
    layer_report_json,
    layer_report_markdown,
)
from pytest_autoquant.reports.markdown.elements import RANDOM_WEIGHTS
from pytest_autoquant.reports.markdown.scheme.report import SCHEMES_MARKDOWN, schemes_markdown
from pytest_autoquant.reports.markdown.session.record import session_summary
from pytest_autoquant.reports.markdown.session.report import SUMMARY_MARKDOWN, summary_markdown
from pytest_autoquant.reports.ownership import (
    is_marked,
    marked,
    refuse_foreign_files,
    refuse_foreign_page,
)
from pytest_autoquant.reports.page.render import PAGE, render_page
from pytest_autoquant.reports.report_model import ReportModel, report_model
from pytest_autoquant.reports.run_comparison import RunComparison, two_runs
from pytest_autoquant.reports.session_results import SessionResults


def write_case(
    root: Path, manifest: Manifest, state: bytes | None = None, *, text: str | None = None
) -> Path:
    """Write a case's manifest, then its layer reports; return the manifest's path.

    ModelOpt's search state, if given, is a record as well and comes before the manifest. The layer
    map is drawn later, by ``draw_layer_maps``; one of an earlier measurement is deleted.

    Args:
        text: the manifest as JSON; None to dump it.

    Raises:
        WriteError: a file cannot be written.
        AnotherModelError: it would replace a manifest of another model.
    """
    path = root / manifest.path
    refuse_replacing(root, path, manifest.model)
    _delete(path.with_name(LAYERS_PICTURE))
    if state is not None:
        write_atomic(state_path(path), state)
    write_atomic(path, dump_manifest(manifest) if text is None else text)
    write_layer_reports(path.parent, manifest, case_result_of(manifest))
    return path


def write_layer_reports(folder: Path, manifest: Manifest, case: CaseResult) -> None:
    """Write the layer reports of a case to the folder of its manifest.

    Raises:
        WriteError: a file cannot be written.
    """
    markdown, document = layer_report_markdown(manifest, case), layer_report_json(manifest, case)
    write_atomic(folder / LAYERS_MARKDOWN, markdown, is_record=False)
    write_atomic(folder / LAYERS_JSON, document, is_record=False)


def complete_case(root: Path, manifest: Manifest) -> None:
    """Write the layer reports of a case whose manifest is there, if they are not.

    Raises:
        WriteError: a file cannot be written.
    """
    folder = (root / manifest.path).parent
    if not all((folder / name).is_file() for name in (LAYERS_MARKDOWN, LAYERS_JSON)):
        write_layer_reports(folder, manifest, case_result_of(manifest))


def draw_layer_maps(root: Path, cases: Iterable[CaseResult], *, again: bool = False) -> None:
    """Draw the layer map of each case, to the folder of its manifest.

    Args:
        again: draw also where there is one.

    Raises:
        WriteError: a file cannot be written.
    """
    for case in cases:
        path = root / PurePosixPath(case.manifest).with_name(LAYERS_PICTURE)
        if again or not path.is_file():
            write_atomic(path, draw_layer_map(case), is_record=False)


def _delete(path: Path) -> None:
    """Delete a report that is out of date; one that cannot be replaced is missing then."""
    with suppress(OSError):
        path.unlink()


def write_expected(root: Path, session: SessionResults) -> None:
    """Write the ``summary.json`` of a session that has only begun: its cases count as lost.

    Raises:
        WriteError: the file cannot be written, or a report would replace a file of somebody else.
    """
    refuse_foreign_files(root)
    write_atomic(root / SUMMARY_JSON, dump_summary(expected_summary(root, session)))


def write_summary(root: Path, session: SessionResults) -> tuple[Path, ...]:
    """Write the reports of the whole folder at the end of a session; return their paths.

    Raises:
        WriteError: a file cannot be written.
    """
    return write_folder_reports(root, cover(root, session))


def write_folder_reports(root: Path, folder: SessionResults) -> tuple[Path, ...]:
    """Write outcome log, summaries, pictures and page of everything in a folder.

    The small files come first: if the disk is full, the page is missing rather than the record.

    Raises:
        WriteError: a file cannot be written, or a report would replace a file of somebody else.
    """
    refuse_foreign_files(root)
    model = report_model(folder)
    texts = {
        SUMMARY_JSON: dump_summary(session_summary(model)),
        SUMMARY_MARKDOWN: marked(summary_markdown(model)),
    }
    if folder.schemes:
        texts[SCHEMES_MARKDOWN] = marked(schemes_markdown(folder.schemes))
    _write_outcomes(root, folder)
    for name in (SUMMARY_JSON, SUMMARY_MARKDOWN, SCHEMES_MARKDOWN, PAGE):
        _delete(root / name)
    for name, text in texts.items():
        write_atomic(root / name, text)
    _write_pictures(root, _grid_pictures(model))
    write_atomic(root / PAGE, render_page(model), is_record=False)
    return (root / PAGE, *(root / name for name in sorted(texts, reverse=True)))


def _write_outcomes(root: Path, folder: SessionResults) -> None:
    """Reduce the log to what the reports show: an error from before the measurement is removed.

    A log that cannot be read stays as it is; ``SessionResults.left_out`` names it.
    """
    outcomes: tuple[LoggedOutcome, ...]
    outcomes = (*folder.skips.values(), *folder.errors.values(), *folder.structures.values())
    if folder.logged is not None and outcomes != folder.logged:
        outcome_log.compact(root, outcomes)


def _grid_pictures(model: ReportModel) -> dict[str, str]:
    """Draw the grids in which something was measured, by file name."""
    return {
        grid_file(shown.view): picture(
            "grid", shown.cells, title=RANDOM_WEIGHTS if shown.has_random_weights else ""
        )
        for shown in model.views
        if shown.is_measured
    }


def _write_pictures(root: Path, pictures: Mapping[str, str]) -> None:
    """Write the pictures of a folder, and delete those of grids that it no longer has."""
    for path in root.glob(GRID_FILES):
        if path.name not in pictures and is_marked(path):
            _delete(path)
    for name, drawn in pictures.items():
        write_atomic(root / name, marked(drawn), is_record=False)


def write_comparison(path: Path, comparison: RunComparison) -> None:
    """Write the page of two runs.

    Raises:
        WriteError: the file cannot be written, or is somebody else's.
    """
    refuse_foreign_page(path)
    model = report_model(two_runs(comparison, path.parent))
    write_atomic(path, render_page(model, comparison))
