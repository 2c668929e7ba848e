"""The one place that writes reports: the controller, as results arrive."""

from __future__ import annotations

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
    read_skips,
    read_structures,
    summary_json,
    summary_markdown,
)
from harness.results import Results, case_line


def write_case(root: Path, manifest: Manifest, state: bytes | None = None) -> Path:
    """Write a case's manifest, layer reports and optionally ModelOpt's search state.

    Returns the manifest's path. Raises ManifestError when a file cannot be written.
    """
    path = root / manifest.path
    write_atomic(path, dump_manifest(manifest))
    if state is not None:
        write_atomic(path.with_name(path.name.replace(MANIFEST_SUFFIX, STATE_SUFFIX)), state)
    write_layer_reports(path.parent, manifest)
    return path


def write_layer_reports(folder: Path, manifest: Manifest) -> None:
    """Write the Markdown and JSON layer reports of a case beside its manifest."""
    write_atomic(folder / LAYERS_MARKDOWN, layer_report_markdown(manifest))
    write_atomic(folder / LAYERS_JSON, layer_report_json(manifest))


def write_summary(root: Path, results: Results) -> tuple[Path, Path]:
    """Write ``summary.md`` and ``summary.json`` at the report root and return their paths."""
    results.sort()
    markdown, document = root / SUMMARY_MARKDOWN, root / SUMMARY_JSON
    write_atomic(markdown, summary_markdown(results))
    write_atomic(document, summary_json(results))
    return markdown, document


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
    previous = root / SUMMARY_JSON
    if previous.is_file():
        earlier = previous.read_text(encoding="utf-8", errors="replace")
        for skip in read_skips(earlier):
            if skip.case_id not in results.cases:
                results.skips[skip.case_id] = skip
        for line in read_structures(earlier):
            results.structures[line.pair, line.granularity] = line
    write_summary(root, results)
    return results, left_out
