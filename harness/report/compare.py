"""Two runs side by side, as Markdown: how each case's groups drifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.comparison import Comparison, compare
from harness.errors import ManifestError
from harness.manifest import GROUP_SUFFIX, Manifest, find_manifests, read_manifest
from harness.report.markdown import code, number, table, text

_WORST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Every case of two runs.

    Attributes:
        cases: by ``case_id``, those in both.
        only_before: case ids, ``only_after`` likewise.
    """

    cases: Mapping[str, Comparison]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


def compare_runs(before: Path, after: Path) -> RunComparison:
    """Compare two report folders, or two manifest files of the same case.

    Raises:
        ManifestError: nothing there, an unreadable manifest, two of one case, or two files of
            different cases.
    """
    first, second = _read(before), _read(after)
    common = [case_id for case_id in first if case_id in second]
    if not common:
        raise ManifestError(f"{before} and {after} have no case in common; give two runs of one")
    return RunComparison(
        cases={case_id: compare(first[case_id], second[case_id]) for case_id in common},
        only_before=tuple(case_id for case_id in first if case_id not in second),
        only_after=tuple(case_id for case_id in second if case_id not in first),
    )


def compare_markdown(comparison: RunComparison) -> str:
    """Return the comparison as Markdown, most drifted case first."""
    ordered = sorted(comparison.cases.items(), key=lambda item: -_largest(item[1]))
    parts = [
        f"{len(ordered)} cases in both runs, {len(comparison.only_before)} only in the first, "
        f"{len(comparison.only_after)} only in the second.",
        table(
            (
                "case",
                "total score",
                "rank corr.",
                "top ten kept",
                "largest group drift",
                "selected",
            ),
            [
                (
                    code(case_id),
                    f"{found.total_drift:+.3%}",
                    f"{found.spearman:.4f}",
                    f"{found.top_ten:.0%}",
                    f"{_largest(found):.3%}",
                    f"{len(found.selection_changes)} changed",
                )
                for case_id, found in ordered
            ],
            right=" rrrrr",
        ),
    ]
    if len(ordered) == 1:
        parts.append(_groups(ordered[0][1]))
    fields = sorted({str(d) for _, found in ordered for d in found.differing})
    if fields:
        parts.append("Measured on something else: " + "; ".join(text(field) for field in fields))
    for title, names in (
        ("Only in the first", comparison.only_before),
        ("Only in the second", comparison.only_after),
    ):
        if names:
            parts.append(f"{title}: " + ", ".join(code(name) for name in names))
    return "\n\n".join(parts) + "\n"


def _groups(found: Comparison) -> str:
    rows = [
        (
            code(group.name.removesuffix(GROUP_SUFFIX)),
            number(group.before),
            number(group.after),
            f"{group.drift:+.3%}",
            f"{group.rank_before} to {group.rank_after}",
        )
        for group in found.worst(_WORST)
    ]
    return table(("group", "score before", "score after", "drift", "rank"), rows, right=" rrrr")


def _largest(found: Comparison) -> float:
    return max((abs(group.drift) for group in found.groups), default=0.0)


def _read(place: Path) -> dict[str, Manifest]:
    if not place.exists():
        raise ManifestError(f"{place}: is not there; give a report folder or a manifest")
    paths = [place] if place.is_file() else find_manifests(place)
    found: dict[str, Manifest] = {}
    for path in paths:
        manifest = read_manifest(path)
        if manifest.case.case_id in found:
            raise ManifestError(f"{place}: holds two manifests of {manifest.case.case_id}")
        found[manifest.case.case_id] = manifest
    if not found:
        raise ManifestError(f"{place}: holds no manifest; run some cases first")
    return found
