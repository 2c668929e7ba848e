"""Select one format per layer group under a bit budget: the multiple-choice knapsack, exactly.

Each group takes exactly one candidate. The sum of scores is minimised subject to the bits stored.
Dynamic program of G. L. Nemhauser and Z. Ullmann, "Discrete Dynamic Programming and Capital
Allocation", Management Science 15 (1969): after each group it keeps the undominated states, those
for which no state stores as little and scores less. Storage is counted in whole units (the largest
number that all differences in storage are multiples of), so budgets are compared exactly, and one
table answers every budget.

ModelOpt solves the same problem with CBC through PuLP (``modelopt/torch/opt/searcher.py`` and
``modelopt/torch/quantization/algorithms.py``, 0.47.0) at default tolerances on raw scores. Below
scores of about 1e-4 it can pick worse groups, below 1e-7 it nearly always does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pytest_autoquant.allocation.scored_group import ScoredGroup

#: Relative slack on a budget, because a budget may itself be a rounded sum of stored bits.
_BUDGET_ROUNDING = Fraction(1, 10**12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """One candidate per group.

    Attributes:
        chosen: index into each group's candidates.
        score: sum of the chosen scores.
        effective_bits: bits stored per weight, over all groups.
        is_satisfied: whether the budget is met; if not, ``chosen`` are the smallest candidates.
        minimum_effective_bits: the smallest budget that can be met.
    """

    chosen: tuple[int, ...]
    score: float
    effective_bits: float
    is_satisfied: bool
    minimum_effective_bits: float


def select_formats(groups: Sequence[ScoredGroup], budget: float) -> Selection:
    """Select the candidates with the least total score within a budget.

    Args:
        groups: one or more groups, each with one or more candidates; the numbers may differ.
        budget: most bits stored per weight, over all groups.
    """
    (selection,) = select_formats_by_budget(groups, [budget])
    return selection


def select_formats_by_budget(
    groups: Sequence[ScoredGroup], budgets: Sequence[float]
) -> tuple[Selection, ...]:
    """Select as ``select_formats`` does for each of ``budgets``, in their order, in one pass."""
    if not budgets:
        return ()
    smallest = tuple(group.smallest for group in groups)
    minimum = _effective_bits(groups, smallest)
    storage = _Storage.of(groups)
    units_left = [storage.units_within(budget) for budget in budgets]
    table = _Table.of(groups, storage, max(0, *units_left))
    return tuple(
        _selection(groups, smallest if units < 0 else table.best(units), minimum, units >= 0)
        for units in units_left
    )


class ExactFrontier:
    """Every selection that no other one matches in bits with less score, fewest bits first.

    Args:
        groups: one or more groups, each with one or more candidates.
        most: most bits stored per weight, over all groups.
    """

    def __init__(self, groups: Sequence[ScoredGroup], most: float) -> None:
        self._groups = groups
        self._minimum = _effective_bits(groups, tuple(group.smallest for group in groups))
        storage = _Storage.of(groups)
        self._table = _Table.of(groups, storage, max(0, storage.units_within(most)))
        stored = storage.smallest + storage.unit * self._table.units.astype(object)
        self.bits: tuple[float, ...] = tuple(bits / storage.weights for bits in stored)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, place: int) -> Selection:
        chosen = self._table.best(int(self._table.units[place]))
        return _selection(self._groups, chosen, self._minimum, is_satisfied=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    """What candidates store, in whole units above the smallest candidate of their group.

    Attributes:
        extra: units of each candidate, by group.
        smallest: bits that all groups store with their smallest candidates.
        unit: bits in one unit.
        weights: number of weights in all groups.
    """

    extra: tuple[NDArray[np.int64], ...]
    smallest: int
    unit: int
    weights: int

    @classmethod
    def of(cls, groups: Sequence[ScoredGroup]) -> _Storage:
        stored = [group.stored_bits for group in groups]
        above = [[bits - min(row) for bits in row] for row in stored]
        unit = math.gcd(*(bits for row in above for bits in row)) or 1
        return cls(
            extra=tuple(np.array([bits // unit for bits in row], np.int64) for row in above),
            smallest=sum(map(min, stored)),
            unit=unit,
            weights=sum(group.weights for group in groups),
        )

    def units_within(self, budget: float) -> int:
        """Return the units a budget leaves above the smallest choice; negative: not reachable."""
        allowed = Fraction(budget) * (1 + _BUDGET_ROUNDING) * self.weights
        return math.floor((allowed - self.smallest) / self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The undominated states after the last group, and how each was reached.

    Attributes:
        units: units that each state stores, ascending; the scores descend.
        choices: candidate that each group takes, by group and state.
        parents: state before that group, by group and state.
    """

    units: NDArray[np.int64]
    choices: tuple[NDArray[np.int64], ...]
    parents: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, groups: Sequence[ScoredGroup], storage: _Storage, most: int) -> _Table:
        """Add the groups one by one, dropping states that store more than ``most`` units."""
        units, scores = np.zeros(1, np.int64), np.zeros(1)
        choices, parents = [], []
        for group, extra in zip(groups, storage.extra, strict=True):
            # Scores relative to the group's least one: small differences survive in the sum.
            excess = np.array(group.scores) - min(group.scores)
            states = len(units)
            units = np.add.outer(extra, units).ravel()
            scores = np.add.outer(excess, scores).ravel()
            kept = _undominated(units, scores, most)
            units, scores = units[kept], scores[kept]
            choices.append(kept // states)
            parents.append(kept % states)
        return cls(units=units, choices=tuple(choices), parents=tuple(parents))

    def best(self, units: int) -> tuple[int, ...]:
        """Return the choice with the least score within ``units``, followed back from its state."""
        state = int(np.searchsorted(self.units, min(units, self.units[-1]), side="right")) - 1
        chosen = []
        for choices, parents in zip(reversed(self.choices), reversed(self.parents), strict=True):
            chosen.append(int(choices[state]))
            state = int(parents[state])
        return tuple(reversed(chosen))


def _undominated(
    units: NDArray[np.int64], scores: NDArray[np.float64], most: int
) -> NDArray[np.int64]:
    """Return the states within ``most`` units that score less than all that store no more."""
    order = np.argsort(units, kind="stable")  # merges: units are one ascending run per candidate
    order = order[units[order] <= most]
    least = np.minimum.accumulate(scores[order])
    order = order[np.append(True, least[1:] < least[:-1])]
    is_last_of_equal = np.append(np.diff(units[order]) > 0, True)
    kept: NDArray[np.int64] = order[is_last_of_equal]
    return kept


def _effective_bits(groups: Sequence[ScoredGroup], chosen: Sequence[int]) -> float:
    stored = sum(g.stored_bits[i] for g, i in zip(groups, chosen, strict=True))
    return stored / sum(group.weights for group in groups)


def _selection(
    groups: Sequence[ScoredGroup], chosen: tuple[int, ...], minimum: float, is_satisfied: bool
) -> Selection:
    return Selection(
        chosen=chosen,
        score=float(sum(g.scores[i] for g, i in zip(groups, chosen, strict=True))),
        effective_bits=_effective_bits(groups, chosen),
        is_satisfied=is_satisfied,
        minimum_effective_bits=minimum,
    )
