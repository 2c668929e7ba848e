"""What a case's selection would be under other budgets, and with its worst groups kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pytest_autoquant.allocation.scored_group import Cost, ScoredGroup
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS
from pytest_autoquant.manifests.case_result import CaseResult, Group

#: How many of the most sensitive groups the second table keeps in 16 bits.
_KEPT = (0, 1, 2, 3, 5, 10, 20, 50, 100)

SELECTION_MEANS = (
    "The selection has the least total score within the budget, so it weighs a group's score "
    "against the bits that quantizing it saves, not the score alone: a large group may be "
    "quantized although its score is higher than that of a small group that stays in 16 bits."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """The selection with the least total score within a budget.

    Attributes:
        budget: bits per weight that the case's ``cost`` counts, as are ``bits``.
        quantized: number of groups that are quantized.
        bits: of the selection, per weight.
        score: of the quantized groups, per scored token.
        share: of the score of quantizing every group; None if that is zero.
    """

    budget: float
    quantized: int
    bits: float
    score: float
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """All groups quantized but the ``kept`` most sensitive ones; the rest as in ``BudgetRow``."""

    kept: int
    bits: float
    score: float
    share: float | None


def budget_rows(case: CaseResult) -> tuple[BudgetRow, ...]:
    """Return the selection at every whole number of bits, the least bits and the case's budget.

    Empty if a score is not finite or the stored bits are not recorded.
    """
    return _budget_rows(case.groups, case.selection.budget, case.selection.cost)


@lru_cache(maxsize=1)  # the Markdown and the JSON of a case ask one after the other
def _budget_rows(
    recorded: tuple[Group, ...], own: float | None, cost: Cost
) -> tuple[BudgetRow, ...]:
    from pytest_autoquant.allocation.knapsack import select_formats_by_budget  # imports numpy

    groups = tuple(group.counted_by(cost) for group in _scored(recorded))
    if not groups:
        return ()
    budgets = _budgets(groups, own)
    total = math.fsum(group.scores[0] for group in groups)
    return tuple(
        BudgetRow(
            budget=budget,
            quantized=sum(
                candidate < len(group.bits) - 1  # the last one is not quantized
                for group, candidate in zip(groups, found.chosen, strict=True)
            ),
            bits=found.effective_bits,
            score=found.score,
            share=found.score / total if total else None,
        )
        for budget, found in zip(budgets, select_formats_by_budget(groups, budgets), strict=True)
        if found.is_satisfied
    )


def kept_rows(case: CaseResult) -> tuple[KeptRow, ...]:
    """Return what remains when the most sensitive groups stay in 16 bits, for growing numbers.

    Empty if a score is not finite or the stored bits are not recorded.
    """
    groups = tuple(group.counted_by(case.selection.cost) for group in _scored(case.groups))
    total = math.fsum(group.scores[0] for group in groups)
    rows = []
    for kept in (*(count for count in _KEPT if count < len(groups)), len(groups)):
        score = math.fsum(group.scores[0] for group in groups[kept:])
        rows.append(
            KeptRow(
                kept=kept,
                bits=_bits(groups, kept),
                score=score,
                share=score / total if total else None,
            )
        )
    return tuple(rows) if groups else ()


def score_per_megabit(group: Group) -> float | None:
    """Return a group's score per million bits that quantizing it saves; None if unknown."""
    if group.score is None or group.bits is None or not group.weights:
        return None
    saved = group.weights * (UNQUANTIZED_BITS - group.bits)
    return 1e6 * group.score / saved if saved > 0 else None


@lru_cache(maxsize=1)  # likewise, and each of the two has two tables
def _scored(groups: tuple[Group, ...]) -> tuple[ScoredGroup, ...]:
    """Return the groups, the most sensitive first; empty if a number is missing or too large."""
    scored = tuple(
        ScoredGroup(
            name=group.name,
            scores=(group.score,),
            bits=(group.bits,),
            weights=group.weights,
            left_out=frozenset({0} if group.keeps_16_bits else ()),
            active_weights=group.active_weights,
        ).with_unquantized()
        for group in groups
        if group.score is not None and group.bits is not None and group.weights
    )
    is_usable = len(scored) == len(groups) and math.isfinite(sum(g.scores[0] for g in scored))
    return scored if is_usable else ()


def _budgets(groups: Sequence[ScoredGroup], own: float | None) -> list[float]:
    weights = sum(group.weights for group in groups)
    least = sum(group.weights * group.bits[group.smallest] for group in groups) / weights
    whole = range(math.ceil(least), int(UNQUANTIZED_BITS) + 1)
    return sorted({least, *map(float, whole), *(() if own is None else (own,))})


def _bits(groups: Sequence[ScoredGroup], kept: int) -> float:
    """Return the bits stored per weight where the first groups stay in 16 bits."""
    weights = sum(group.weights for group in groups)
    stored = sum(
        group.weights * (UNQUANTIZED_BITS if place < kept else group.bits[0])
        for place, group in enumerate(groups)
    )
    return stored / weights if weights else UNQUANTIZED_BITS
