"""Schemes: the formats that layer groups may take, and the rule that selects the groups.

A scheme turns scores into one format per layer group. All members of a group take the same format,
because inference engines fuse them (q/k/v, gate/up).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pytest_autoquant.allocation.scored_group import (
    Cost,
    ScoredGroup,
    active_bits,
    rounded_up,
)
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS

Measure = Literal["fraction_of_groups", "fraction_of_weights", "effective_bits", "max_kl"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

#: Measures that weigh a group's score against the bits it saves, among several candidates.
BY_BITS: tuple[Measure, ...] = ("effective_bits", "max_kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A named rule that selects a format for every layer group.

    Attributes:
        candidates: formats a group may take, each ``pair`` or ``pair-granularity``; not
            quantizing a group is always allowed as well.
        measure: what ``amount`` limits: the fraction of groups or of weights to quantize, least
            sensitive groups first, or the bits stored per weight over the language model's linears,
            or the KL divergence that the quantized model is measured to have.
        amount: a fraction in [0, 1], bits per weight in (0, 16], or nats per token above 0.
    """

    name: str
    candidates: tuple[str, ...]
    measure: Measure
    amount: float

    def __post_init__(self) -> None:
        problem = self._candidates_problem() or self._amount_problem()
        if problem is not None:
            raise UsageError(f"scheme {self.name!r}: {problem}")

    def _candidates_problem(self) -> str | None:
        names = ", ".join(self.candidates)
        if not self.candidates:
            return "candidates must not be empty; give one quant pair or more"
        if len(set(self.candidates)) < len(self.candidates):
            return f"candidates must not repeat, got {names}"
        if self.measure not in BY_BITS and len(self.candidates) > 1:
            return (
                f"{self.measure} allows one candidate, got {names}; give one, or use "
                f"{' or '.join(BY_BITS)}, which select among several"
            )
        return None

    def _amount_problem(self) -> str | None:
        if self.measure == "effective_bits":
            is_valid, allowed = 0 < self.amount <= UNQUANTIZED_BITS, "in (0, 16]"
        elif self.measure == "max_kl":
            is_valid, allowed = 0 < self.amount < math.inf, "above 0, in nats per token"
        else:
            is_valid, allowed = 0 <= self.amount <= 1, "in [0, 1]"
        return None if is_valid else f"{self.measure} must be {allowed}, got {self.amount:g}"


def builtin_schemes() -> dict[str, Scheme]:
    """Return the built-in schemes by name, in the order tables and reports show them."""
    schemes = (
        _fp8("top25", "fraction_of_groups", 0.25),
        _fp8("top50", "fraction_of_groups", 0.5),
        _fp8("full", "fraction_of_groups", 1.0),
        _fp8("weights50", "fraction_of_weights", 0.5),
        _fp8("bits10", "effective_bits", 10.0),
        _fp8("bits12", "effective_bits", 12.0),
        Scheme(
            name="int4_fp8_autoquant_bits6",
            candidates=("wint4_afp16", "wfp8_afp8"),
            measure="effective_bits",
            amount=6.0,
        ),
    )
    return {scheme.name: scheme for scheme in schemes}


def _fp8(suffix: str, measure: Measure, amount: float) -> Scheme:
    return Scheme(
        name=f"fp8_autoquant_{suffix}", candidates=("wfp8_afp8",), measure=measure, amount=amount
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The formats that a scheme selected.

    Attributes:
        chosen: index of the candidate of each group, None where the group is not quantized.
        score: predicted sensitivity, summed over the groups, per scored token.
        effective_bits: bits stored per weight over the language model's linears.
        active_bits: bits per weight that a token is multiplied with; None where those are all.
        fraction_of_groups: quantized groups / groups.
        fraction_of_weights: weights in quantized groups / weights.
    """

    chosen: tuple[int | None, ...]
    score: float
    effective_bits: float
    fraction_of_groups: float
    fraction_of_weights: float
    active_bits: float | None = None


def allocate(scheme: Scheme, groups: Sequence[ScoredGroup], cost: Cost = "stored") -> Allocation:
    """Select a format for every group.

    By a fraction, groups are quantized in ascending order of score, so a smaller fraction selects
    a subset of a larger one: the number of groups nearest to ``fraction_of_groups``, or as many as
    stay within ``fraction_of_weights``. By bits, the least total score within the budget, exactly.
    By measured KL divergence, the fewest bits: the first of the selections to be measured.
    A fraction is of all groups; those that must not take the candidate are passed over.

    A group keeps to the candidates that it can take.

    Args:
        groups: scores and bits of the scheme's candidates, without the unquantized one.
        cost: which weights ``effective_bits`` counts.

    Raises:
        UsageError: no group can take a candidate, the candidates cannot reach the budget (the
            message names what can be reached), or save no bits where the fewest are asked for.
    """
    if not any(group.takeable for group in groups):
        names = " or ".join(scheme.candidates)
        raise UsageError(f"scheme {scheme.name!r}: no layer group can take {names}")
    if scheme.measure == "effective_bits":
        return allocation_of(groups, _chosen_within_bits(scheme, groups, cost))
    if scheme.measure == "max_kl":
        return allocation_of(groups, _fewest_bits(scheme, groups))
    able = [i for i, group in enumerate(groups) if group.takeable]
    ascending = sorted(able, key=lambda i: (groups[i].scores[0], i))
    if scheme.measure == "fraction_of_groups":
        quantized = set(ascending[: _wanted_groups(scheme, len(groups))])
    else:
        quantized = set(_first_within_weights(groups, ascending, scheme.amount))
    return allocation_of(groups, [0 if i in quantized else None for i in range(len(groups))])


def check_reachable(scheme: Scheme, groups: Sequence[ScoredGroup], cost: Cost = "stored") -> None:
    """Check a scheme's rule against what its groups can take, whatever their scores are.

    Raises:
        UsageError: as ``allocate``, or fewer groups can take the candidate than the rule asks for.
    """
    allocate(scheme, groups, cost)
    able = sum(bool(group.takeable) for group in groups)
    wanted = _wanted_groups(scheme, len(groups)) if scheme.measure == "fraction_of_groups" else 0
    if wanted > able:
        raise UsageError(
            f"scheme {scheme.name!r}: fraction_of_groups {scheme.amount:g} asks for {wanted} of "
            f"{len(groups)} layer groups and only {able} can take {scheme.candidates[0]}; give "
            f"at most {math.floor(able / len(groups) * 1e4) / 1e4:g}"
        )


def _wanted_groups(scheme: Scheme, count: int) -> int:
    """Return the number of groups that is nearest to the scheme's fraction of ``count``."""
    return math.floor(scheme.amount * count + 0.5)


def _chosen_within_bits(
    scheme: Scheme, groups: Sequence[ScoredGroup], cost: Cost
) -> list[int | None]:
    # Imported here: the built-in schemes are read where numpy is not needed.
    from pytest_autoquant.allocation.knapsack import select_formats

    counted = [group.with_unquantized().counted_by(cost) for group in groups]
    selection = select_formats(counted, scheme.amount)
    if not selection.is_satisfied:
        raise UsageError(
            f"scheme {scheme.name!r}: effective_bits {scheme.amount:.15g} cannot be reached with "
            f"{', '.join(scheme.candidates)}; give at least "
            f"{rounded_up(selection.minimum_effective_bits)}, or a candidate with fewer bits"
        )
    return [g.candidate(i) for g, i in zip(groups, selection.chosen, strict=True)]


def _fewest_bits(scheme: Scheme, groups: Sequence[ScoredGroup]) -> list[int | None]:
    if not any(group.bits[i] < UNQUANTIZED_BITS for group in groups for i in group.takeable):
        raise UsageError(
            f"scheme {scheme.name!r}: max_kl asks for the fewest bits, and no layer group stores "
            f"fewer than 16 per weight with {' or '.join(scheme.candidates)}; give a candidate "
            "that quantizes weights"
        )
    return [group.candidate(group.with_unquantized().smallest) for group in groups]


def _first_within_weights(
    groups: Sequence[ScoredGroup], ascending: Sequence[int], fraction: float
) -> list[int]:
    """Return the first groups whose weights together stay within a fraction of all weights."""
    weights_left = fraction * sum(group.weights for group in groups)
    taken: list[int] = []
    for i in ascending:
        weights_left -= groups[i].weights
        if weights_left < 0:
            break
        taken.append(i)
    return taken


def uniform_allocation(groups: Sequence[ScoredGroup], candidate: int) -> Allocation:
    """Return the plain choice: one candidate for every group that can take it."""
    chosen = [candidate if candidate in group.takeable else None for group in groups]
    return allocation_of(groups, chosen)


def allocation_of(groups: Sequence[ScoredGroup], chosen: Sequence[int | None]) -> Allocation:
    """Return the allocation that gives each group a candidate, None to leave it unquantized."""
    selected = list(zip(groups, chosen, strict=True))
    weights = sum(group.weights for group in groups)
    quantized = [(group, i) for group, i in selected if i is not None]
    bits = [UNQUANTIZED_BITS if i is None else group.bits[i] for group, i in selected]
    stored = sum(group.weights * each for group, each in zip(groups, bits, strict=True))
    return Allocation(
        chosen=tuple(chosen),
        score=math.fsum(group.scores[i] for group, i in quantized),
        effective_bits=stored / weights,
        fraction_of_groups=len(quantized) / len(groups),
        fraction_of_weights=sum(group.weights for group, _ in quantized) / weights,
        active_bits=active_bits(groups, bits),
    )
