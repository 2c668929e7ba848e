"""Decide the format of every layer group from what was measured, under a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_autoquant.allocation.scheme import Allocation, Measure, Scheme, allocate, allocation_of
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS
from pytest_autoquant.recipes.decision import DecidedGroup, Decision
from pytest_autoquant.recipes.measured import Measured

#: What the rule of a decision is called in errors.
_NAME = "recipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What limits a decision; ``amount`` as in ``Scheme``."""

    measure: Measure
    amount: float


def choose(measured: Measured, budget: Budget | None) -> Decision:
    """Return the decision of least predicted damage within a budget.

    Args:
        budget: None for the bits per weight that a single manifest records.

    Raises:
        UsageError: there is no budget, or it cannot be met.
    """
    rule = _rule(measured, budget or _recorded(measured))
    return _decision(measured, rule, allocate(rule, measured.groups, measured.cost))


def frontier(measured: Measured) -> Iterator[Decision]:
    """Yield the decisions that no other one matches in bits with less score, fewest bits first.

    The ``amount`` of each decision's rule is its bits as the manifests' budget counts them.
    """
    from pytest_autoquant.allocation.knapsack import ExactFrontier  # imports numpy

    groups = measured.groups
    if not any(group.takeable for group in groups):
        return
    counted = [group.with_unquantized().counted_by(measured.cost) for group in groups]
    curve = ExactFrontier(counted, UNQUANTIZED_BITS)
    for place in range(len(curve)):
        selection = curve[place]
        chosen = [g.candidate(i) for g, i in zip(groups, selection.chosen, strict=True)]
        budget = Budget(measure="effective_bits", amount=selection.effective_bits)
        yield _decision(measured, _rule(measured, budget), allocation_of(groups, chosen))


def _decision(measured: Measured, rule: Scheme, allocation: Allocation) -> Decision:
    return Decision(
        model=measured.model,
        digest=measured.digest,
        candidates=measured.formats,
        rule=rule,
        method=measured.method,
        groups=_decided(measured, allocation),
        score=allocation.score,
        effective_bits=allocation.effective_bits,
        notes=measured.notes,
    )


def _rule(measured: Measured, budget: Budget) -> Scheme:
    names = tuple(format.name for format in measured.formats)
    return Scheme(name=_NAME, candidates=names, measure=budget.measure, amount=budget.amount)


def _recorded(measured: Measured) -> Budget:
    if len(measured.formats) > 1 or measured.budget is None:
        raise UsageError(
            f"{len(measured.formats)} candidates and no budget; give --bits or --fraction"
        )
    return Budget(measure="effective_bits", amount=measured.budget)


def _decided(measured: Measured, allocation: Allocation) -> tuple[DecidedGroup, ...]:
    rows = zip(measured.groups, measured.modules, measured.widths, allocation.chosen, strict=True)
    return tuple(
        DecidedGroup(
            name=group.name,
            modules=modules,
            widths=widths,
            format=None if chosen is None else measured.formats[chosen],
            score=None if chosen is None else group.scores[chosen],
            bits=UNQUANTIZED_BITS if chosen is None else group.bits[chosen],
        )
        for group, modules, widths, chosen in rows
    )
