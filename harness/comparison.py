"""Two measurements of one case side by side: ranks, drifts, selections."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.fingerprint import Difference, differences, fingerprint_of
from harness.manifest import Manifest

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
        groups: in both, in module order; ``new`` and ``vanished`` are in one only.
        spearman: rank correlation of the scores of ``groups``; 1 for the same order.
        top_ten: share of the ten most sensitive groups before that still are among the ten.
        total_drift: of the total score, relative.
        selection_changes: groups that the bit budget treats otherwise.
        differing: fields of the fingerprint.
    """

    groups: tuple[GroupDrift, ...]
    new: tuple[str, ...]
    vanished: tuple[str, ...]
    spearman: float
    top_ten: float
    total_drift: float
    selection_changes: tuple[str, ...]
    differing: tuple[Difference, ...]

    def worst(self, count: int) -> tuple[GroupDrift, ...]:
        """Return the groups that drifted most, most first."""
        return tuple(sorted(self.groups, key=lambda group: -abs(group.drift))[:count])


def compare(before: Manifest, after: Manifest) -> Comparison:
    """Compare two measurements of the same case."""
    first, second = before.layer_sensitivity, after.layer_sensitivity
    common = [name for name in second if name in first]
    floor = _FLOOR * _mean([group.importance for group in first.values()])
    groups = tuple(
        GroupDrift(
            name=name,
            before=first[name].importance,
            after=second[name].importance,
            rank_before=first[name].rank,
            rank_after=second[name].rank,
            drift=_drift(first[name].importance, second[name].importance, floor),
        )
        for name in common
    )
    totals = before.autoquant_state.total_score, after.autoquant_state.total_score
    return Comparison(
        groups=groups,
        new=tuple(name for name in second if name not in first),
        vanished=tuple(name for name in first if name not in second),
        spearman=_spearman(groups),
        top_ten=_top_ten(before, after),
        total_drift=_drift(*totals, 0.0),
        selection_changes=tuple(
            name for name in common if _is_selected(before, name) != _is_selected(after, name)
        ),
        differing=differences(fingerprint_of(before), fingerprint_of(after)),
    )


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


def _spearman(groups: tuple[GroupDrift, ...]) -> float:
    """Correlate by rank; orders that cannot be correlated count as equal only if they are."""
    from scipy.stats import rankdata, spearmanr

    before = rankdata([_order(group.before) for group in groups]).tolist()
    after = rankdata([_order(group.after) for group in groups]).tolist()
    if before == after:
        return 1.0
    if len(set(before)) == 1 or len(set(after)) == 1:
        return 0.0
    return float(spearmanr(before, after).statistic)


def _order(score: float | None) -> float:
    return math.inf if score is None else score


def _top_ten(before: Manifest, after: Manifest) -> float:
    first, second = (
        {ranked.name for ranked in manifest.sensitivity_ranking[:TOP]}
        for manifest in (before, after)
    )
    return len(first & second) / len(first) if first else 1.0


def _is_selected(manifest: Manifest, group: str) -> bool:
    return all(
        manifest.layers[name].selected for name in manifest.layer_sensitivity[group].module_names
    )
