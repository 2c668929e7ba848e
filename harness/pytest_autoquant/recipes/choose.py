"""Decide the format of every layer group from what was measured, under a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_autoquant.allocation.scheme import Allocation, Measure, Scheme, allocate, allocation_of
from pytest_autoquant.allocation.scored_group import ScoredGroup
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

    By ``max_kl`` it is the one of the fewest bits whose groups' measured KL divergences add up to
    no more. That is a prediction: each group was measured alone.

    Args:
        budget: None for the bits per weight that a single manifest records.

    Raises:
        UsageError: there is no budget, it cannot be met, or no KL divergence was measured.
    """
    rule = _rule(measured, budget or _recorded(measured))
    if rule.measure == "max_kl":
        by_kl = _scored_by_divergence(measured)
        allocate(rule, by_kl.groups, measured.cost)  # raises where nothing can save bits
        return _decision(by_kl, rule, _fewest_bits_within(rule, by_kl.groups))
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
            f"{len(measured.formats)} candidates and no budget; give --bits, --fraction or --max-kl"
        )
    return Budget(measure="effective_bits", amount=measured.budget)


def _scored_by_divergence(measured: Measured) -> Measured:
    """Return the same groups with measured KL divergences in place of scores."""
    columns = []
    for source, column in zip(measured.sources, measured.divergences, strict=True):
        if column is None:
            raise UsageError(
                f"{source}: has no measured KL divergence of each layer group, which --max-kl adds "
                "up; measure the case with --aq-method=kl_div, or give --bits"
            )
        columns.append(column)
    rows = zip(measured.groups, zip(*columns, strict=True), strict=True)
    note = "scores are KL divergences in nats per token, of each layer group quantized alone"
    return replace(
        measured,
        groups=tuple(replace(group, scores=row) for group, row in rows),
        method="kl_div",
        notes=(*measured.notes, note),
    )


def _fewest_bits_within(rule: Scheme, groups: Sequence[ScoredGroup]) -> Allocation:
    from pytest_autoquant.allocation.knapsack import ExactFrontier  # imports numpy

    curve = ExactFrontier([group.with_unquantized() for group in groups], UNQUANTIZED_BITS)
    # Scores fall along the curve: the first place that is not above the limit.
    place = bisect_left(range(len(curve)), -rule.amount, key=lambda i: -curve[i].score)
    chosen = zip(groups, curve[place].chosen, strict=True)
    allocation = allocation_of(groups, [group.candidate(i) for group, i in chosen])
    if all(candidate is None for candidate in allocation.chosen):
        least = min(group.scores[i] for group in groups for i in group.takeable)
        raise UsageError(
            f"max_kl {rule.amount:g} quantizes no layer group; give at least {least!r}, or a "
            "candidate with more bits"
        )
    return allocation


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
