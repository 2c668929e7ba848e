"""Two runs compared case by case: how the scores and ranks of their layer groups drifted."""

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
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Every case of two runs.

    Attributes:
        before: every case of the first run, ``after`` of the second.
        roots: the folders that the cases' manifests are relative to.
        cases: comparisons of the cases in both runs, by ``case_id``.
        only_before: ids of cases that only the first run has; ``only_after``, the second.
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
        RecordError: a path does not exist or holds no manifest, a manifest cannot be read, a
            folder holds two manifests of one case, or the runs have no case in common.
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
        raise RecordError(
            f"{before} and {after} have no case in common; choose runs of the same cases"
        )
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
    """Return both runs as one session, labelled A and B; file names are relative to ``folder``."""
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
        raise RecordError(
            f"{where} have no layer group in common; choose models of one architecture"
        )
    return found


def _read(place: Path) -> dict[str, CaseResult]:
    if not place.exists():
        raise RecordError(f"{place}: does not exist; pass a report folder or a manifest")
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
