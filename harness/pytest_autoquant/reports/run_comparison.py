"""Two runs compared case by case: how the scores and ranks of their layer groups drifted."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.pre_harness import read_sensitivity
from pytest_autoquant.regression.comparison import Comparison, compare
from pytest_autoquant.reports.found_cases import FoundCases, find_cases
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Every case of two runs.

    Attributes:
        before: every case of the first run, ``after`` of the second.
        roots: the folders that the cases' manifests are relative to.
        cases: comparisons of the cases in both runs, by ``case_id``.
        only_before: ids of cases that only the first run has; ``only_after``, the second.
        left_out: files of either run that are not used, and why.
    """

    before: Mapping[str, CaseResult]
    after: Mapping[str, CaseResult]
    roots: tuple[Path, Path]
    cases: Mapping[str, Comparison]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def compare_runs(before: Path, after: Path) -> RunComparison:
    """Compare two report folders case by case, or any two manifests.

    Raises:
        RecordError: a path does not exist or holds no manifest, a file cannot be read, or the runs
            have no case in common. Files of a folder that cannot be read are left out and named.
    """
    found = _read(before), _read(after)
    ambiguous = {*found[0].ambiguous, *found[1].ambiguous}
    first, second = _in_use(before, found[0], ambiguous), _in_use(after, found[1], ambiguous)
    if before.is_file() and after.is_file():
        (one,), (other,) = first.values(), second.values()
        name = one.case_id if one.case_id == other.case_id else f"{one.case_id} -> {other.case_id}"
        cases = {name: _compare(one, other, f"{before} and {after}")}
    else:
        cases = {
            name: compare(case, second[name]) for name, case in first.items() if name in second
        }
    if not cases:
        raise RecordError(
            f"{before} and {after} have no case in common; choose runs of the same cases. The "
            f"first has {_some(first)}; the second has {_some(second)}"
        )
    compared = {name for found in cases.values() for name in found.cases}
    return RunComparison(
        before=first,
        after=second,
        roots=(_root(before), _root(after)),
        cases=cases,
        only_before=tuple(name for name in first if name not in compared),
        only_after=tuple(name for name in second if name not in compared),
        left_out=tuple(
            f"{root}/{reason}"
            for root, side in ((before, found[0]), (after, found[1]))
            for reason in side.left_out
        ),
    )


def two_runs(comparison: RunComparison, folder: Path) -> SessionResults:
    """Return both runs as one session, labelled A and B; file names are relative to ``folder``."""
    results = SessionResults(left_out=list(comparison.left_out))
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
        raise RecordError(
            f"{where} have no layer group in common; choose models of one architecture"
        )
    return found


def _read(place: Path) -> FoundCases:
    """Return the cases of a report folder or of one manifest.

    Raises:
        RecordError: the path does not exist, or the file cannot be read.
    """
    if not place.exists():
        raise RecordError(f"{place}: does not exist; pass a report folder or a manifest")
    if not place.is_file():
        return find_cases(place)
    try:
        case = read_sensitivity(place, place.parent)
    except RecordError as error:
        raise RecordError(f"{place.parent}/{error}") from None
    if case.is_old:
        return FoundCases(current={}, old=(case,), left_out=())
    return FoundCases(current={case.case_id: case}, old=(), left_out=())


def _in_use(place: Path, found: FoundCases, ambiguous: Collection[str]) -> dict[str, CaseResult]:
    cases = found.by_id(ambiguous)
    if not cases:
        why = f"; left out: {'; '.join(found.left_out)}" if found.left_out else ""
        raise RecordError(f"{place}: holds no manifest{why}; run some cases first")
    return cases


def _some(cases: Mapping[str, CaseResult]) -> str:
    """Return the first case id and the number of the others."""
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return f"{next(iter(cases))}{more}"


def _root(place: Path) -> Path:
    return place.parent if place.is_file() else place
