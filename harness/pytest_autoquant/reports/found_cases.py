"""The cases of a folder's manifests, of any age: the same for reports and for comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.case_result import CaseResult, case_result_of
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.pre_harness import read_any
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
from pytest_autoquant.text import well_formed

Visit = Callable[[Path, Manifest, CaseResult], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCases:
    """What the manifests below a folder hold.

    Attributes:
        current: cases of this harness, by ``case_id``.
        old: cases from before the harness, in path order; several can have one ``case_id``.
        left_out: files that are not used, and why.
    """

    current: Mapping[str, CaseResult]
    old: tuple[CaseResult, ...]
    left_out: tuple[str, ...]

    @property
    def ambiguous(self) -> set[str]:
        """Ids that do not name one case: of two old ones, or of an old and a current one."""
        counts = Counter([*self.current, *(case.case_id for case in self.old)])
        return {case_id for case_id, count in counts.items() if count > 1}

    def by_id(self, ambiguous: Collection[str] = ()) -> dict[str, CaseResult]:
        """Return every case by its id; old cases of an ambiguous id get their folder in it.

        Args:
            ambiguous: further ids that old cases must not have alone, as of the other run.
        """
        named = dict(self.current)
        for case in _told_apart(self.old, {*self.ambiguous, *ambiguous}):
            named[case.case_id] = case
        return named


def find_cases(
    root: Path,
    *,
    known: Mapping[str, CaseResult] | None = None,
    visit: Visit | None = None,
) -> FoundCases:
    """Read every manifest under a folder. Of two manifests of one case the first is used.

    Args:
        known: cases by id whose manifests need not be read; they are part of what is returned.
        visit: called with the path, the manifest and the result of every case of this harness.
    """
    current = dict(known or {})
    places = {root / case.manifest for case in current.values()}
    old: list[CaseResult] = []
    left_out: list[str] = []
    for path in find_manifests(root):
        if path in places:
            continue
        try:
            case = _read(root, path, visit)
        except RecordError as error:
            left_out.append(str(error))
            continue
        if case.is_old:
            old.append(case)
        elif current.setdefault(case.case_id, case) is not case:
            first = current[case.case_id].manifest
            left_out.append(f"{case.manifest}: is the same case as {first}; delete one")
    return FoundCases(current=current, old=tuple(old), left_out=tuple(left_out))


def _read(root: Path, path: Path, visit: Visit | None) -> CaseResult:
    found = read_any(path, root)
    if isinstance(found, CaseResult):
        return found
    case = case_result_of(found, path.relative_to(root))
    if visit is not None:
        visit(path, found, case)
    return case


def _told_apart(cases: Iterable[CaseResult], ambiguous: Collection[str]) -> list[CaseResult]:
    """Return the cases, those of an ambiguous id with their folder in the id, or their file."""
    cases = tuple(cases)
    folders = Counter((case.case_id, _file(case).parent) for case in cases)
    named = []
    for case in cases:
        if case.case_id not in ambiguous:
            named.append(case)
            continue
        file = _file(case)
        place = file.parent if folders[case.case_id, file.parent] == 1 else file
        suffix = f" ({place})"
        named.append(
            replace(case, case_id=case.case_id + suffix, granularity=case.granularity + suffix)
        )
    return named


def _file(case: CaseResult) -> PurePosixPath:
    return PurePosixPath(well_formed(case.manifest))
