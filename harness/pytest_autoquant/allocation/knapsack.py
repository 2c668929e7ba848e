"""Which groups to quantize under a bit budget: the multiple-choice knapsack, solved exactly.

Each group takes exactly one format. The sum of scores is minimised subject to the stored bits, so
this is an integer program with one binary variable per (group, format), solved by HiGHS through
``scipy.optimize.milp``. ModelOpt's own solve runs CBC with default tolerances on raw scores, which
picks worse layers from 1e-4 down, and nearly always when scores are below 1e-7. A solver has
absolute tolerances, so here the budget row is whole units of storage, and scores are rescaled to
the best total known until it stops shrinking.

Storage comes in whole units of the groups' sizes, so one dynamic program over units answers every
budget at once (``frontier``), also exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_SCORE_SCALE = 1e3
_MOST_STEPS = 200_000_000
"""Groups x units of storage: two bytes each while the dynamic program runs."""

_FINEST = 2**16
"""Parts of a bit: a third of one is no float, and no unit that amounts have in common."""

_ROUNDING = Fraction(1, 10**12)
"""Relative slack on a budget, for budgets that are themselves rounded sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One format that one group can take: its score and the bits it stores per weight."""

    score: float
    bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice of one candidate per group.

    Attributes:
        chosen: index into each group's candidates.
        score: sum of the chosen scores.
        effective_bits: bits per weight over all groups.
        is_satisfied: whether the budget is met; if not, the smallest choice is given.
        minimum_effective_bits: the smallest budget that could be met.
    """

    chosen: tuple[int, ...]
    score: float
    effective_bits: float
    is_satisfied: bool
    minimum_effective_bits: float


def select(
    groups: Sequence[Sequence[Candidate]], weights: Sequence[int], budget: float
) -> Selection:
    """Choose the candidates with the least total score within ``budget`` bits per weight.

    Args:
        groups: candidates of each group; ``(groups, formats)``, ragged allowed.
        weights: number of weights in each group.
        budget: bits per weight, averaged over all groups.
    """
    smallest = tuple(map(_smallest, groups))
    minimum = _bits(groups, weights, smallest)
    problem = _Problem.of(groups, weights)
    room = problem.room(budget)
    if room < 0:
        return _selection(groups, weights, smallest, minimum, is_satisfied=False)
    return _selection(groups, weights, _solve(problem, room), minimum, is_satisfied=True)


def frontier(
    groups: Sequence[Sequence[Candidate]], weights: Sequence[int], budgets: Sequence[float]
) -> tuple[Selection, ...]:
    """Choose as ``select`` does for every one of ``budgets``, in their order.

    One dynamic program over whole units of storage serves all budgets: ``least[u]`` is the least
    score that the groups so far can have within ``u`` units above their smallest choice. Where the
    groups' sizes have no common unit to speak of, each budget is solved on its own.
    """
    problem = _Problem.of(groups, weights)
    rooms = [problem.room(budget) for budget in budgets]
    most = min(max(rooms, default=-1), problem.most)
    if most < 0 or most * len(groups) > _MOST_STEPS:
        return tuple(select(groups, weights, budget) for budget in budgets)
    smallest = tuple(map(_smallest, groups))
    minimum = _bits(groups, weights, smallest)
    table = _Table.of(problem, most)
    return tuple(
        _selection(groups, weights, smallest, minimum, is_satisfied=False)
        if room < 0
        else _selection(groups, weights, table.best(room), minimum, is_satisfied=True)
        for room in rooms
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Which candidate each group takes at every number of units, ``(groups, units + 1)``.

    Attributes:
        extra: units that each candidate of each group takes.
    """

    choice: NDArray[np.int16]
    extra: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, problem: _Problem, room: int) -> _Table:
        ends = np.flatnonzero(np.diff(problem.owner)) + 1
        extra = tuple(np.split(problem.extra.astype(np.int64), ends))
        choice = np.zeros((len(extra), room + 1), dtype=np.int16)
        least = np.zeros(room + 1)
        for row, units, excess in zip(choice, extra, np.split(problem.excess, ends), strict=True):
            least = _take(least, units, excess, row)
        return cls(choice=choice, extra=extra)

    def best(self, room: int) -> tuple[int, ...]:
        """Follow the choices back from ``room`` units."""
        left = min(room, self.choice.shape[1] - 1)
        taken = []
        for row, units in zip(reversed(self.choice), reversed(self.extra), strict=True):
            taken.append(int(row[left]))
            left -= int(units[taken[-1]])
        return tuple(reversed(taken))


def _take(
    least: NDArray[np.float64],
    units: NDArray[np.int64],
    excess: NDArray[np.float64],
    choice: NDArray[np.int16],
) -> NDArray[np.float64]:
    """Add a group: the least score within each number of units, and which candidate gives it."""
    found = np.full_like(least, np.inf)
    best = np.inf
    for index in np.lexsort((excess, units)):
        if excess[index] >= best or units[index] >= len(least):
            continue  # another candidate stores no more and scores no more
        best = excess[index]
        start = int(units[index])
        offered = least[: len(least) - start] + best
        is_less = offered < found[start:]
        np.copyto(found[start:], offered, where=is_less)
        np.copyto(choice[start:], np.int16(index), where=is_less)
    return found


def _smallest(candidates: Sequence[Candidate]) -> int:
    return min(range(len(candidates)), key=lambda i: (candidates[i].bits, candidates[i].score))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """The program over all (group, candidate) variables, relative to each group's least.

    Attributes:
        owner: each variable's group.
        excess: its score above the least score of its group.
        extra: its storage above the least of its group, in whole units.
        most: units that the largest choice takes.
        smallest: bits that the smallest choice stores; ``unit`` in bits, ``weights`` counted.
    """

    owner: NDArray[np.int64]
    excess: NDArray[np.float64]
    extra: NDArray[np.float64]
    most: int
    smallest: Fraction
    unit: Fraction
    weights: int

    @classmethod
    def of(cls, groups: Sequence[Sequence[Candidate]], weights: Sequence[int]) -> _Problem:
        stored = [
            [Fraction(c.bits).limit_denominator(_FINEST) * weight for c in group]
            for group, weight in zip(groups, weights, strict=True)
        ]
        extra = [bits - min(row) for row in stored for bits in row]
        unit = _common_unit([bits for bits in extra if bits])
        least = [min(c.score for c in group) for group in groups]
        return cls(
            owner=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
            excess=np.array(
                [c.score - low for g, low in zip(groups, least, strict=True) for c in g],
                dtype=np.float64,
            ),
            extra=np.array([float(bits / unit) for bits in extra]),
            most=int(sum(max(row) - min(row) for row in stored) / unit),
            smallest=sum(map(min, stored), Fraction()),
            unit=unit,
            weights=sum(weights),
        )

    def room(self, budget: float) -> int:
        """Return the units that a budget leaves above the smallest choice; negative: infeasible."""
        allowed = Fraction(budget) * (1 + _ROUNDING) * self.weights
        return math.floor((allowed - self.smallest) / self.unit)


def _common_unit(amounts: Sequence[Fraction]) -> Fraction:
    """Return the largest unit that all amounts are whole multiples of."""
    if not amounts:
        return Fraction(1)
    denominator = math.lcm(*(amount.denominator for amount in amounts))
    return Fraction(math.gcd(*(int(a * denominator) for a in amounts)), denominator)


def _solve(problem: _Problem, room: int) -> tuple[int, ...]:
    """Solve, rescaled to the last total, until the total no longer halves."""
    ceiling = float(problem.excess.max())
    refused: list[NDArray[np.int64]] = []
    while True:
        taken = _milp(problem, room, ceiling, refused)
        if problem.extra[taken].sum() > room:
            refused.append(taken)
            continue
        total = float(problem.excess[taken].sum())
        if total == 0 or total >= ceiling / 2:
            break
        ceiling = total
    starts = np.searchsorted(problem.owner, problem.owner[taken])
    return tuple(int(i) for i in taken - starts)


def _milp(
    problem: _Problem, room: int, ceiling: float, refused: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return the variables of the best choice; none may cost more than ``ceiling`` alone.

    ``refused`` are choices that only the solver's tolerances allowed; each is cut off.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    count = len(problem.owner)
    allowed = (problem.excess <= ceiling) & (problem.extra <= room)
    objective = np.where(allowed, problem.excess / (ceiling or 1.0), 0.0) * _SCORE_SCALE
    one_each = csr_array((np.ones(count), (problem.owner, np.arange(count))))
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(problem.extra[None, :], -np.inf, room + 0.5),
    ]
    for taken in refused:
        row = np.zeros((1, count))
        row[0, taken] = 1
        constraints.append(LinearConstraint(row, -np.inf, len(taken) - 1))
    result = milp(
        objective,
        integrality=np.ones(count),
        bounds=Bounds(0, allowed.astype(np.float64)),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    return np.flatnonzero(result.x > 0.5)


def _bits(
    groups: Sequence[Sequence[Candidate]], weights: Sequence[int], chosen: Sequence[int]
) -> float:
    stored = sum(g[i].bits * w for g, i, w in zip(groups, chosen, weights, strict=True))
    return float(stored / sum(weights))


def _selection(
    groups: Sequence[Sequence[Candidate]],
    weights: Sequence[int],
    chosen: tuple[int, ...],
    minimum: float,
    *,
    is_satisfied: bool,
) -> Selection:
    return Selection(
        chosen=chosen,
        score=float(sum(g[i].score for g, i in zip(groups, chosen, strict=True))),
        effective_bits=_bits(groups, weights, chosen),
        is_satisfied=is_satisfied,
        minimum_effective_bits=minimum,
    )
