"""Two runs side by side: how each case's groups drifted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.pre_harness import read_sensitivity
from pytest_autoquant.regression.comparison import Comparison, compare
from pytest_autoquant.reports.markdown import code, number, table, text
from pytest_autoquant.reports.session_results import SessionResults

_WORST = 10
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Every case of two runs.

    Attributes:
        before: every case of the first run, ``after`` of the second; manifests are named below
            ``roots``.
        cases: by ``case_id``, those in both.
        only_before: case ids, ``only_after`` likewise.
    """

    before: Mapping[str, CaseResult]
    after: Mapping[str, CaseResult]
    roots: tuple[Path, Path]
    cases: Mapping[str, Comparison]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


def compare_runs(before: Path, after: Path) -> RunComparison:
    """Compare two report folders case by case, or any two manifests.

    Raises:
        RecordError: nothing there, an unreadable manifest, two of one case, or nothing in common.
    """
    first, second = _read(before), _read(after)
    if before.is_file() and after.is_file():
        (one,), (other,) = first.values(), second.values()
        name = one.case_id if one.case_id == other.case_id else f"{one.case_id} -> {other.case_id}"
        cases = {name: _compare(one, other, f"{before} and {after}")}
    else:
        cases = {
            name: compare(case, second[name]) for name, case in first.items() if name in second
        }
    if not cases:
        raise RecordError(f"{before} and {after} have no case in common; give two runs of one")
    compared = {name for found in cases.values() for name in found.cases}
    return RunComparison(
        before=first,
        after=second,
        roots=(_root(before), _root(after)),
        cases=cases,
        only_before=tuple(name for name in first if name not in compared),
        only_after=tuple(name for name in second if name not in compared),
    )


def two_runs(comparison: RunComparison, folder: Path) -> SessionResults:
    """Return both runs as one session, A and B, whose files are named from ``folder``."""
    results = SessionResults()
    sides = (comparison.before, comparison.after)
    for run, cases, root in zip("AB", sides, comparison.roots, strict=True):
        for case in cases.values():
            path = os.path.relpath(root / case.manifest, folder)
            labelled = replace(
                case,
                case_id=f"{run}: {case.case_id}",
                model=f"{run}: {case.model}",
                alias_of=None if case.alias_of is None else f"{run}: {case.alias_of}",
                source=replace(
                    case.source,
                    manifest=Path(path).as_posix(),
                    origin={f"{run}, {label}": value for label, value in case.origin.items()},
                ),
            )
            results.cases[labelled.case_id] = labelled
    return results


def _compare(before: CaseResult, after: CaseResult, where: str) -> Comparison:
    found = compare(before, after)
    if not found.groups:
        raise RecordError(f"{where} have no layer group in common; give two of one architecture")
    return found


def compare_markdown(comparison: RunComparison) -> str:
    """Return the comparison as Markdown, most drifted case first."""
    ordered = sorted(comparison.cases.items(), key=lambda item: -item[1].largest_drift)
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
                    f"{found.largest_drift:.3%}",
                    f"{len(found.selection_changes)} changed",
                )
                for case_id, found in ordered
            ],
            right=" rrrrr",
        ),
    ]
    if len(ordered) == 1:
        parts.append(_groups(ordered[0][1]))
    if any(not found.is_comparable for _, found in ordered):
        parts.append(
            "A manifest from before the harness takes part: compare its ranks, not its scores; "
            "what it was measured on is unknown."
        )
    fields = sorted({str(d) for _, found in ordered for d in found.differing})
    if fields:
        parts.append("Measured on something else: " + "; ".join(text(field) for field in fields))
    for title, names in (
        ("Only in the first", comparison.only_before),
        ("Only in the second", comparison.only_after),
    ):
        if names:
            more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            named = ", ".join(code(name) for name in names[:_MOST_NAMED])
            parts.append(f"{title}: {named}{more}")
    return "\n\n".join(parts) + "\n"


def _groups(found: Comparison) -> str:
    rows = [
        (
            code(group.name),
            number(group.before),
            number(group.after),
            f"{group.drift:+.3%}",
            f"{group.rank_before} to {group.rank_after}",
        )
        for group in found.worst(_WORST)
    ]
    return table(("group", "score before", "score after", "drift", "rank"), rows, right=" rrrr")


def _read(place: Path) -> dict[str, CaseResult]:
    if not place.exists():
        raise RecordError(f"{place}: is not there; give a report folder or a manifest")
    paths = [place] if place.is_file() else find_manifests(place)
    found: dict[str, CaseResult] = {}
    for path in paths:
        try:
            case = read_sensitivity(path, _root(place))
        except RecordError as error:
            raise RecordError(f"{_root(place)}/{error}") from None
        if case.case_id in found:
            raise RecordError(f"{place}: holds two manifests of {case.case_id}")
        found[case.case_id] = case
    if not found:
        raise RecordError(f"{place}: holds no manifest; run some cases first")
    return found


def _root(place: Path) -> Path:
    return place.parent if place.is_file() else place
