"""Which groups to quantize under a bit budget: the multiple-choice knapsack, solved exactly.

Each group takes exactly one format. The sum of scores is minimised subject to the stored bits, so
this is an integer program with one binary variable per (group, format), solved by HiGHS through
``scipy.optimize.milp``. ModelOpt's own solve runs CBC with default tolerances on raw scores, which
picks the wrong layers when scores are near 1e-6; here they are scaled first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SCORE_SCALE = 1e3
_MARGINS = (0.0, 1e-9, 1e-7, 1e-5)


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
    if minimum > budget * (1 + 1e-12):
        return _selection(groups, weights, smallest, minimum, is_satisfied=False)
    chosen = _solve(groups, weights, budget) or smallest
    return _selection(groups, weights, chosen, minimum, is_satisfied=True)


def _smallest(candidates: Sequence[Candidate]) -> int:
    return min(range(len(candidates)), key=lambda i: (candidates[i].bits, candidates[i].score))


def _solve(
    groups: Sequence[Sequence[Candidate]], weights: Sequence[int], budget: float
) -> tuple[int, ...] | None:
    """Solve the integer program; a solution that only tolerances allow is solved again, tighter."""
    for margin in _MARGINS:
        chosen = _milp(groups, weights, budget * (1 - margin))
        if chosen is not None and _bits(groups, weights, chosen) <= budget * (1 + 1e-12):
            return chosen
    return None


def _milp(
    groups: Sequence[Sequence[Candidate]], weights: Sequence[int], budget: float
) -> tuple[int, ...] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    scores = np.array([c.score for g in groups for c in g], dtype=np.float64)
    share = np.array(weights, dtype=np.float64) / sum(weights)
    bits = np.array([c.bits * w for g, w in zip(groups, share, strict=True) for c in g])
    owner = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    result = milp(
        _scaled(scores),
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(bits[None, :], -np.inf, budget),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    taken = np.flatnonzero(result.x > 0.5)
    starts = np.concatenate([[0], np.cumsum([len(g) for g in groups])[:-1]])
    return tuple(int(i) for i in taken - starts)


def _scaled(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = scores.max(initial=0.0)
    return scores * (_SCORE_SCALE / largest) if largest > 0 else scores


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
