"""The one place that writes reports: the controller, as results arrive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pytest_autoquant.errors import RecordError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.case_result import CaseResult, case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.pre_harness import read_any
from pytest_autoquant.manifests.scheme_manifest import find_schemes, read_scheme_manifest
from pytest_autoquant.manifests.sensitivity_manifest import (
    MANIFEST_SUFFIX,
    STATE_SUFFIX,
    Manifest,
    dump_manifest,
    find_manifests,
)
from pytest_autoquant.manifests.session_summary import SUMMARY_JSON, read_summary
from pytest_autoquant.reports.case_report import (
    LAYERS_JSON,
    LAYERS_MARKDOWN,
    LAYERS_PICTURE,
    layer_report_json,
    layer_report_markdown,
)
from pytest_autoquant.reports.charts.pictures import GRID_FILES, grid_pictures, layer_map
from pytest_autoquant.reports.page.render import PAGE, render_page
from pytest_autoquant.reports.run_comparison import RunComparison, two_runs
from pytest_autoquant.reports.scheme_report import SCHEMES_MARKDOWN, schemes_markdown
from pytest_autoquant.reports.session_report import (
    SUMMARY_MARKDOWN,
    counts_sentence,
    summary_json,
    summary_markdown,
)
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.text import well_formed


def write_case(root: Path, manifest: Manifest, state: bytes | None = None) -> Path:
    """Write a case's manifest, layer reports and optionally ModelOpt's search state.

    The manifest comes last: where there is one, the rest is there too.
    Returns the manifest's path. Raises WriteError when a file cannot be written.
    """
    path = root / manifest.path
    write_layer_reports(path.parent, manifest, case_result_of(manifest))
    if state is not None:
        write_atomic(path.with_name(path.name.replace(MANIFEST_SUFFIX, STATE_SUFFIX)), state)
    write_atomic(path, dump_manifest(manifest))
    return path


def write_layer_reports(folder: Path, manifest: Manifest, case: CaseResult) -> None:
    """Write the layer reports of a case and its layer map beside its manifest."""
    write_atomic(folder / LAYERS_PICTURE, layer_map(case))
    write_atomic(folder / LAYERS_MARKDOWN, layer_report_markdown(manifest, case))
    write_atomic(folder / LAYERS_JSON, layer_report_json(manifest, case))


def write_summary(root: Path, results: SessionResults) -> tuple[Path, ...]:
    """Write the summaries, their pictures and the page at the report root; return the paths.

    The smallest files come first: a disk that fills up then takes the page, not the record.
    """
    results.sort()
    for name in (SUMMARY_JSON, SUMMARY_MARKDOWN, SCHEMES_MARKDOWN, PAGE):
        with suppress(OSError):  # rather none than that of an earlier run
            (root / name).unlink()
    texts = {SUMMARY_JSON: summary_json(results), SUMMARY_MARKDOWN: summary_markdown(results)}
    if results.schemes:
        texts[SCHEMES_MARKDOWN] = schemes_markdown(results.schemes)
    for name, text in texts.items():
        write_atomic(root / name, text)
    _write_pictures(root, grid_pictures(results))
    write_atomic(root / PAGE, render_page(results))
    return (root / PAGE, *(root / name for name in sorted(texts, reverse=True)))


def _write_pictures(root: Path, pictures: Mapping[str, str]) -> None:
    """Write the pictures of a session, and take away those of an earlier one."""
    for stale in {path.name for path in root.glob(GRID_FILES)} - set(pictures):
        with suppress(OSError):
            (root / stale).unlink()
    for name, drawn in pictures.items():
        write_atomic(root / name, drawn)


def write_comparison(path: Path, comparison: RunComparison) -> None:
    """Write the page of two runs.

    Raises:
        WriteError: it cannot be written.
    """
    write_atomic(path, render_page(two_runs(comparison, path.parent), comparison))


def write_expected(root: Path, results: SessionResults) -> None:
    """Write the ``summary.json`` of a session that has only begun.

    Raises:
        WriteError: it cannot be written.
    """
    write_atomic(root / SUMMARY_JSON, summary_json(results))


def rebuild(root: Path) -> SessionResults:
    """Rebuild every report under ``root`` from its manifests, without torch.

    Skipped and structure cases have no manifest; those of the last ``summary.json`` are kept unless
    they have been measured since. ``SessionResults.left_out`` names the files left out, and why.

    Raises:
        WriteError: a report cannot be written.
    """
    results = SessionResults()
    old = []
    for path in find_manifests(root):
        try:
            case = _rebuild_case(root, path)
        except RecordError as error:
            results.left_out.append(str(error))
            continue
        if case.is_old:
            old.append(case)
        else:
            _take_case(results, case)
    for case in old:
        _take_old(results, case)
    for path in find_schemes(root):
        try:
            scheme = read_scheme_manifest(path, root)
        except RecordError as error:
            results.left_out.append(str(error))
            continue
        results.schemes[scheme.case_id] = scheme
    _take_earlier(results, root / SUMMARY_JSON)
    if results.is_empty and not results.left_out:
        results.left_out.append(f"no *{MANIFEST_SUFFIX} is here; run some cases first")
    write_summary(root, results)
    return results


def _rebuild_case(root: Path, path: Path) -> CaseResult:
    """Write a case's layer reports anew.

    Whatever lies beside a manifest from before the harness is its author's, and stays.
    """
    found = read_any(path, root)
    if isinstance(found, CaseResult):
        return found
    case = case_result_of(found, path.relative_to(root))
    write_layer_reports(path.parent, found, case)
    return case


def _take_case(results: SessionResults, case: CaseResult) -> None:
    """Take a case in; of two manifests of one case, the first in path order stays."""
    known = results.cases.setdefault(case.case_id, case)
    if known is not case:
        results.left_out.append(
            f"{case.manifest}: is the same case as {known.manifest}; delete one"
        )


def _take_old(results: SessionResults, case: CaseResult) -> None:
    """Take a case in that lacks the fields which tell it from others: its place then does."""
    file = PurePosixPath(well_formed(case.manifest))
    known, granularity, place = case.case_id, case.granularity, file.parent
    while case.case_id in results.cases:
        case = replace(case, case_id=f"{known} ({place})", granularity=f"{granularity} ({place})")
        place = file
    results.cases[case.case_id] = case


def rebuilt_report(root: Path, results: SessionResults) -> str:
    """Return what ``rebuild`` found, one line each."""
    left_out = (f"left out: {reason}" for reason in results.left_out)
    return "\n".join([*left_out, f"{root}: {counts_sentence(results)}", f"wrote {root / PAGE}"])


def _take_earlier(results: SessionResults, path: Path) -> None:
    """Keep what has no manifest from the summary that is about to be replaced."""
    if not path.is_file():
        return
    try:
        earlier = read_summary(path)
    except RecordError as error:
        results.left_out.append(str(error).removeprefix(f"{path.parent}{os.sep}"))
        return
    lines: list[SkippedCase | FailedCase] = [*earlier.skipped, *earlier.errors]
    for line in lines:
        if line.case_id not in results.cases:
            results.add(line)
    results.gated = {c: why for c, why in earlier.gated.items() if c in results.case_ids}
    results.lost = tuple(case_id for case_id in earlier.lost if case_id not in results.case_ids)
    results.command = earlier.command
    results.shard = earlier.shard
    for structure in earlier.structure:
        results.structures[structure.pair, structure.granularity] = structure
