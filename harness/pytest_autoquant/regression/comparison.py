"""Comparison of two results: scores, ranks and selections of the groups they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.manifests.case_result import CaseResult, Group
from pytest_autoquant.manifests.fingerprint import Difference, differences
from pytest_autoquant.manifests.ranks import TOP, spearman

#: Smallest base of a relative drift, as a fraction of the mean score: groups below it contribute
#: so little that their relative drift says nothing.
_FLOOR = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDrift:
    """One group in both results.

    Attributes:
        before: score per scored token, None if it is not finite; ``after`` likewise.
        drift: ``(after - before) / max(before, 1% of the mean score before)``; infinite if
            either score is not finite.
        is_beyond_noise: whether the scores differ by more than other captions may make them;
            None if a result has no error bars.
    """

    name: str
    before: float | None
    after: float | None
    rank_before: int
    rank_after: int
    drift: float
    is_beyond_noise: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The changes from one result to another.

    Attributes:
        cases: the two case ids.
        groups: groups in both results, by rank in the second.
        new: groups in the second result only.
        vanished: groups in the first result only.
        spearman: rank correlation of the scores of ``groups``; 1 for the same order.
        top_ten: share of the first result's ten most sensitive groups that are among the
            second's ten.
        total_drift: relative drift of the total score.
        is_total_beyond_noise: of the sum over ``groups``; see ``GroupDrift``.
        kl_drift: relative drift of the measured KL divergence with every group quantized, and
            ``is_kl_beyond_noise`` likewise; None if a result has none.
        aligned: groups whose names end alike only, each with its name in the first and in the
            second result; they are among ``groups``.
        selection_changes: groups whose selection under the bit budget changed.
        differing: fingerprint fields that are known to differ.
        budgets: bits per weight under which each result's groups are selected.
        is_comparable: false if a manifest from before the harness is compared: it is then
            unknown whether both were measured with the same inputs.
        methods: by which each result was scored. Where they differ, scores have different units:
            no drift of a score says anything, and none is beyond noise.
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
    budgets: tuple[float | None, float | None] = (None, None)
    aligned: tuple[tuple[str, str], ...] = ()
    is_comparable: bool = True
    methods: tuple[str, str] = ("gradient", "gradient")
    is_total_beyond_noise: bool | None = None
    kl_drift: float | None = None
    is_kl_beyond_noise: bool | None = None

    @property
    def has_one_unit(self) -> bool:
        """Whether both results have scores by one method."""
        return len(set(self.methods)) == 1

    @property
    def num_beyond_noise(self) -> int | None:
        """Number of groups that differ by more than their noise; None if that is unknown."""
        known = [g.is_beyond_noise for g in self.groups if g.is_beyond_noise is not None]
        return sum(known) if known else None

    @property
    def largest_drift(self) -> float:
        """The largest drift of a group, in either direction."""
        return max((abs(group.drift) for group in self.groups), default=0.0)

    def worst(self, count: int) -> tuple[GroupDrift, ...]:
        """Return the groups with the largest drifts, largest first."""
        return tuple(sorted(self.groups, key=lambda group: -abs(group.drift))[:count])


def compare(before: CaseResult, after: CaseResult) -> Comparison:
    """Compare two results of one case, or of two cases with groups in common.

    Groups have equal names, or names that are equal from the list of layers on.
    """
    first = {group.name: group for group in before.groups}
    second = {group.name: group for group in after.groups}
    floor = _FLOOR * _mean([group.score for group in before.groups])
    names = _names_before(before, after)
    common = [(first[names[name]], second[name]) for name in second if name in names]
    *beyond, total_beyond = _beyond_noise(before, after, common)
    groups = tuple(
        _group_drift(*pair, floor, is_beyond)
        for pair, is_beyond in zip(common, beyond, strict=True)
    )
    found = set(names.values())
    return Comparison(
        cases=(before.case_id, after.case_id),
        groups=groups,
        new=tuple(name for name in second if name not in names),
        vanished=tuple(name for name in first if name not in found),
        spearman=spearman([(group.before, group.after) for group in groups]),
        top_ten=_top_ten(before, after, names),
        total_drift=_drift(before.total_score, after.total_score, 0.0),
        selection_changes=tuple(
            new.name for old, new in common if {old.selected, new.selected} == {True, False}
        ),
        differing=_differing(before, after),
        budgets=(before.selection.budget, after.selection.budget),
        aligned=tuple((old.name, new.name) for old, new in common if old.name != new.name),
        is_comparable=not (before.is_old or after.is_old),
        methods=(before.method, after.method),
        is_total_beyond_noise=total_beyond,
        kl_drift=(
            None
            if before.whole is None or after.whole is None
            else _drift(before.whole_kl, after.whole_kl, 0.0)
        ),
        is_kl_beyond_noise=_kl_beyond_noise(before, after),
    )


def _beyond_noise(
    before: CaseResult, after: CaseResult, common: Sequence[tuple[Group, Group]]
) -> list[bool | None]:
    """Return whether each pair of groups differs by more than its noise, and so their sum."""
    from pytest_autoquant.manifests.uncertainty import case_sample, score_differences

    if before.method != after.method:
        return [None] * (len(common) + 1)
    first = case_sample(before.scored, [old for old, _ in common])
    second = case_sample(after.scored, [new for _, new in common])
    if first is None or second is None:
        return [None] * (len(common) + 1)
    found = score_differences(first.with_sum(), second.with_sum())
    return [each.is_beyond_noise for each in found]


def _kl_beyond_noise(before: CaseResult, after: CaseResult) -> bool | None:
    from pytest_autoquant.manifests.uncertainty import score_differences, whole_sample

    first = whole_sample(before.scored, before.whole)
    second = whole_sample(after.scored, after.whole)
    if first is None or second is None:
        return None
    (found,) = score_differences(first, second)
    return found.is_beyond_noise


def _group_drift(
    before: Group, after: Group, floor: float, is_beyond_noise: bool | None
) -> GroupDrift:
    return GroupDrift(
        name=after.name,
        before=before.score,
        after=after.score,
        rank_before=before.rank,
        rank_after=after.rank,
        drift=_drift(before.score, after.score, floor),
        is_beyond_noise=is_beyond_noise,
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


def _names_before(before: CaseResult, after: CaseResult) -> dict[str, str]:
    """Return the first result's name of every group that both have, by its name in the second."""
    first = before.short_names
    alike = {short: name for name, short in first.items() if name not in after.short_names}
    return {
        name: name if name in first else alike[short]
        for name, short in after.short_names.items()
        if name in first or short in alike
    }


def _top_ten(before: CaseResult, after: CaseResult, names: Mapping[str, str]) -> float:
    first = {group.name for group in before.groups[:TOP]}
    second = {names.get(group.name) for group in after.groups[:TOP]}
    return len(first & second) / len(first) if first else 1.0


def _differing(before: CaseResult, after: CaseResult) -> tuple[Difference, ...]:
    if before.fingerprint is None or after.fingerprint is None:
        return ()
    found = differences(before.fingerprint, after.fingerprint)
    return tuple(difference for difference in found if difference.is_known)
