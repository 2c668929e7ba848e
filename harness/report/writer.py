"""The one place that writes reports: the controller, as results arrive."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import ManifestError
from harness.files import write_atomic
from harness.manifest import (
    MANIFEST_SUFFIX,
    STATE_SUFFIX,
    Manifest,
    dump_manifest,
    find_manifests,
    read_manifest,
)
from harness.report.layers import (
    LAYERS_JSON,
    LAYERS_MARKDOWN,
    layer_report_json,
    layer_report_markdown,
)
from harness.report.overview import (
    SUMMARY_JSON,
    SUMMARY_MARKDOWN,
    counts_sentence,
    read_summary,
    summary_json,
    summary_markdown,
)
from harness.results import ErrorLine, Results, SkipLine, case_line


def write_case(root: Path, manifest: Manifest, state: bytes | None = None) -> Path:
    """Write a case's manifest, layer reports and optionally ModelOpt's search state.

    The manifest comes last: where there is one, the rest is there too.
    Returns the manifest's path. Raises ManifestError when a file cannot be written.
    """
    path = root / manifest.path
    write_layer_reports(path.parent, manifest)
    if state is not None:
        write_atomic(path.with_name(path.name.replace(MANIFEST_SUFFIX, STATE_SUFFIX)), state)
    write_atomic(path, dump_manifest(manifest))
    return path


def write_layer_reports(folder: Path, manifest: Manifest) -> None:
    """Write the Markdown and JSON layer reports of a case beside its manifest."""
    write_atomic(folder / LAYERS_MARKDOWN, layer_report_markdown(manifest))
    write_atomic(folder / LAYERS_JSON, layer_report_json(manifest))


def write_summary(root: Path, results: Results) -> tuple[Path, Path]:
    """Write ``summary.md`` and ``summary.json`` at the report root and return their paths."""
    results.sort()
    markdown, document = root / SUMMARY_MARKDOWN, root / SUMMARY_JSON
    with suppress(OSError):  # rather none than that of an earlier run
        document.unlink()
    write_atomic(markdown, summary_markdown(results))
    write_atomic(document, summary_json(results))
    return markdown, document


def write_expected(root: Path, results: Results) -> None:
    """Write the ``summary.json`` of a session that has only begun.

    Raises:
        ManifestError: it cannot be written.
    """
    write_atomic(root / SUMMARY_JSON, summary_json(results))


def rebuild(root: Path) -> tuple[Results, list[str]]:
    """Rebuild every report under ``root`` from its manifests, without torch.

    Skipped and structure cases have no manifest; those of the last ``summary.json`` are kept unless
    they have been measured since. Returns the results and why files were left out.

    Raises:
        ManifestError: there is no manifest under ``root``.
    """
    paths = find_manifests(root)
    if not paths:
        raise ManifestError(f"{root}: holds no *{MANIFEST_SUFFIX}; run some cases first")
    results, left_out = Results(), []
    for path in paths:
        try:
            manifest = read_manifest(path)
        except ManifestError as error:
            left_out.append(str(error))
            continue
        write_layer_reports(path.parent, manifest)
        case = case_line(manifest, path.relative_to(root))
        results.cases[case.case_id] = case
    _take_earlier(results, root / SUMMARY_JSON, left_out)
    write_summary(root, results)
    return results, left_out


def rebuilt_report(root: Path, results: Results, left_out: Sequence[str]) -> str:
    """Return what ``rebuild`` found, one line each."""
    return "\n".join(
        [*(f"left out: {reason}" for reason in left_out), f"{root}: {counts_sentence(results)}"]
    )


def _take_earlier(results: Results, path: Path, left_out: list[str]) -> None:
    """Keep what has no manifest from the summary that is about to be replaced."""
    if not path.is_file():
        return
    try:
        earlier = read_summary(path)
    except ManifestError as error:
        left_out.append(str(error))
        return
    lines: list[SkipLine | ErrorLine] = [*earlier.skips, *earlier.errors]
    for line in lines:
        if line.case_id not in results.cases:
            results.add(line)
    results.gated = {c: why for c, why in earlier.gated.items() if c in results.case_ids}
    results.lost = tuple(case_id for case_id in earlier.lost if case_id not in results.case_ids)
    results.shard = None if earlier.shard is None else "{}/{}".format(*earlier.shard)
    for structure in earlier.structures:
        results.structures[structure.pair, structure.granularity] = structure
