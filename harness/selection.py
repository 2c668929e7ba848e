"""Which groups to quantize under a bit budget: the multiple-choice knapsack, solved exactly.

Each group takes exactly one format. The sum of scores is minimised subject to the stored bits, so
this is an integer program with one binary variable per (group, format), solved by HiGHS through
``scipy.optimize.milp``. ModelOpt's own solve runs CBC with default tolerances on raw scores, which
picks worse layers from 1e-4 down, and nearly always when scores are below 1e-7. A solver has
absolute tolerances, so here the budget row is whole units of storage, and scores are rescaled to
the best total known until it stops shrinking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_SCORE_SCALE = 1e3
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
    problem = _Problem.of(groups, weights, budget)
    if problem.room < 0:
        return _selection(groups, weights, smallest, minimum, is_satisfied=False)
    return _selection(groups, weights, _solve(problem), minimum, is_satisfied=True)


def _smallest(candidates: Sequence[Candidate]) -> int:
    return min(range(len(candidates)), key=lambda i: (candidates[i].bits, candidates[i].score))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """The program over all (group, candidate) variables, relative to each group's least.

    Attributes:
        owner: each variable's group.
        excess: its score above the least score of its group.
        extra: its storage above the least of its group, in whole units.
        room: how many units the budget leaves above the smallest choice; negative if infeasible.
    """

    owner: NDArray[np.int64]
    excess: NDArray[np.float64]
    extra: NDArray[np.float64]
    room: int

    @classmethod
    def of(
        cls, groups: Sequence[Sequence[Candidate]], weights: Sequence[int], budget: float
    ) -> _Problem:
        stored = [
            [Fraction(c.bits) * weight for c in group]
            for group, weight in zip(groups, weights, strict=True)
        ]
        extra = [bits - min(row) for row in stored for bits in row]
        unit = _common_unit([bits for bits in extra if bits])
        left = Fraction(budget) * (1 + _ROUNDING) * sum(weights) - sum(map(min, stored))
        least = [min(c.score for c in group) for group in groups]
        return cls(
            owner=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
            excess=np.array(
                [c.score - low for g, low in zip(groups, least, strict=True) for c in g],
                dtype=np.float64,
            ),
            extra=np.array([float(bits / unit) for bits in extra]),
            room=math.floor(left / unit),
        )


def _common_unit(amounts: Sequence[Fraction]) -> Fraction:
    """Return the largest unit that all amounts are whole multiples of."""
    if not amounts:
        return Fraction(1)
    denominator = math.lcm(*(amount.denominator for amount in amounts))
    return Fraction(math.gcd(*(int(a * denominator) for a in amounts)), denominator)


def _solve(problem: _Problem) -> tuple[int, ...]:
    """Solve, rescaled to the last total, until the total no longer halves."""
    ceiling = float(problem.excess.max())
    refused: list[NDArray[np.int64]] = []
    while True:
        taken = _milp(problem, ceiling, refused)
        if problem.extra[taken].sum() > problem.room:
            refused.append(taken)
            continue
        total = float(problem.excess[taken].sum())
        if total == 0 or total >= ceiling / 2:
            break
        ceiling = total
    starts = np.searchsorted(problem.owner, problem.owner[taken])
    return tuple(int(i) for i in taken - starts)


def _milp(
    problem: _Problem, ceiling: float, refused: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return the variables of the best choice; none may cost more than ``ceiling`` alone.

    ``refused`` are choices that only the solver's tolerances allowed; each is cut off.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    count = len(problem.owner)
    allowed = (problem.excess <= ceiling) & (problem.extra <= problem.room)
    objective = np.where(allowed, problem.excess / (ceiling or 1.0), 0.0) * _SCORE_SCALE
    one_each = csr_array((np.ones(count), (problem.owner, np.arange(count))))
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(problem.extra[None, :], -np.inf, problem.room + 0.5),
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
