"""Two measurements of one case side by side: ranks, drifts, selections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.fingerprint import Difference, differences

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP = 10
_FLOOR = 0.01
"""Of the mean score: groups below it drift by any factor without meaning anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDrift:
    """One group in both measurements.

    Attributes:
        before: score per scored token, None where it is not finite; ``after`` likewise.
        drift: ``(after - before) / max(before, 1% of the mean score before)``; infinite where
            either score is not finite.
    """

    name: str
    before: float | None
    after: float | None
    rank_before: int
    rank_after: int
    drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed from one manifest to another.

    Attributes:
        cases: the two case ids.
        groups: in both, most sensitive after first; ``new`` and ``vanished`` are in one only.
        spearman: rank correlation of the scores of ``groups``; 1 for the same order.
        top_ten: share of the ten most sensitive groups before that still are among the ten.
        total_drift: of the total score, relative.
        selection_changes: groups that the bit budget treats otherwise.
        differing: fields of the fingerprint.
        is_comparable: false where a manifest from before the harness takes part: whether both were
            measured on the same thing is then unknown.
    """

    cases: tuple[str, str]
    groups: tuple[GroupDrift, ...]
    new: tuple[str, ...]
    vanished: tuple[str, ...]
    spearman: float
    top_ten: float
    total_drift: float
    selection_changes: tuple[str, ...]
    differing: tuple[Difference, ...]
    is_comparable: bool = True

    @property
    def largest_drift(self) -> float:
        """The drift of the group that drifted most, either way."""
        return max((abs(group.drift) for group in self.groups), default=0.0)

    def worst(self, count: int) -> tuple[GroupDrift, ...]:
        """Return the groups that drifted most, most first."""
        return tuple(sorted(self.groups, key=lambda group: -abs(group.drift))[:count])


def compare(before: CaseResult, after: CaseResult) -> Comparison:
    """Compare two measurements of the same case, or of two cases with groups in common."""
    first = {group.name: group for group in before.groups}
    second = {group.name: group for group in after.groups}
    common = [name for name in second if name in first]
    floor = _FLOOR * _mean([group.score for group in first.values()])
    groups = tuple(
        GroupDrift(
            name=name,
            before=first[name].score,
            after=second[name].score,
            rank_before=first[name].rank,
            rank_after=second[name].rank,
            drift=_drift(first[name].score, second[name].score, floor),
        )
        for name in common
    )
    return Comparison(
        cases=(before.case_id, after.case_id),
        groups=groups,
        new=tuple(name for name in second if name not in first),
        vanished=tuple(name for name in first if name not in second),
        spearman=spearman([(group.before, group.after) for group in groups]),
        top_ten=_top_ten(before, after),
        total_drift=_drift(before.total_score, after.total_score, 0.0),
        selection_changes=tuple(
            name
            for name in common
            if {first[name].selected, second[name].selected} == {True, False}
        ),
        differing=_differing(before, after),
        is_comparable=not (before.is_old or after.is_old),
    )


def spearman(scores: Sequence[tuple[float | None, float | None]]) -> float:
    """Correlate pairs of scores by rank, a score that is not finite above all others.

    Orders that cannot be correlated count as equal only if they are.
    """
    import numpy as np

    if not scores:
        return 1.0
    first, second = (
        _ranks([_order(score) for score in side]) for side in zip(*scores, strict=True)
    )
    if np.array_equal(first, second):
        return 1.0
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Rank from the lowest, ties sharing their mean; scipy.stats takes a second to import."""
    import numpy as np

    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    mean: NDArray[np.float64] = count.cumsum() - (count - 1) / 2
    return mean[place]


def _drift(before: float | None, after: float | None, floor: float) -> float:
    if before is None or after is None:
        return math.inf
    if before == after:
        return 0.0
    base = max(before, floor)
    return (after - before) / base if base else math.inf


def _mean(scores: list[float | None]) -> float:
    finite = [score for score in scores if score is not None]
    return sum(finite) / len(finite) if finite else 0.0


def _order(score: float | None) -> float:
    return math.inf if score is None else score


def _top_ten(before: CaseResult, after: CaseResult) -> float:
    first, second = ({group.name for group in side.groups[:TOP]} for side in (before, after))
    return len(first & second) / len(first) if first else 1.0


def _differing(before: CaseResult, after: CaseResult) -> tuple[Difference, ...]:
    if before.fingerprint is None or after.fingerprint is None:
        return ()
    return differences(before.fingerprint, after.fingerprint)
