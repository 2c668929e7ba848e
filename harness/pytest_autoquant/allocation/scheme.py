"""Schemes: what each layer group may become, and the rule that decides; no torch here.

A scheme turns scores into one decision per layer group. Every member of a group shares it, as fused
projections must.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_autoquant.errors import UsageError

if TYPE_CHECKING:
    from pytest_autoquant.allocation.knapsack import Candidate

UNQUANTIZED = None
"""The decision to leave a group alone."""

Measure = Literal["fraction_of_groups", "fraction_of_weights", "effective_bits"]
MEASURES: tuple[Measure, ...] = ("fraction_of_groups", "fraction_of_weights", "effective_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A named rule.

    Attributes:
        candidates: ids of what a group may become, ``pair`` or ``pair-granularity``; leaving it
            alone is always allowed.
        measure: what ``amount`` counts: the fraction of groups or of weights to quantize, least
            sensitive first, or the most bits stored per weight over the language model's linears.
    """

    name: str
    candidates: tuple[str, ...]
    measure: Measure
    amount: float

    def __post_init__(self) -> None:
        where = f"scheme {self.name!r}"
        if not self.candidates:
            raise UsageError(f"{where}: names no candidate; give one pair or more")
        if len(set(self.candidates)) < len(self.candidates):
            raise UsageError(f"{where}: names a candidate twice: {', '.join(self.candidates)}")
        if self.measure == "effective_bits":
            if not (math.isfinite(self.amount) and 0 < self.amount <= 16):
                raise UsageError(
                    f"{where}: effective_bits {self.amount:g} is none; give bits per weight above "
                    "0 and up to 16"
                )
        elif not 0 <= self.amount <= 1:
            raise UsageError(f"{where}: {self.measure} {self.amount:g} is no fraction; give 0 to 1")
        elif len(self.candidates) > 1:
            raise UsageError(
                f"{where}: {self.measure} says how many groups to quantize, not to which of "
                f"{len(self.candidates)} candidates; give one, or effective_bits"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One layer group as schemes see it.

    Attributes:
        scores: of each candidate, per scored token.
        bits: stored per weight under each candidate.
        weights: counted.
    """

    name: str
    scores: tuple[float, ...]
    bits: tuple[float, ...]
    weights: int


def builtin_schemes() -> dict[str, Scheme]:
    """Return the schemes that need no YAML."""
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


def _fp8(end: str, measure: Measure, amount: float) -> Scheme:
    return Scheme(
        name=f"fp8_autoquant_{end}", candidates=("wfp8_afp8",), measure=measure, amount=amount
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What a scheme decided.

    Attributes:
        chosen: position of the candidate of each group, None where it is left alone.
        score: predicted, summed over the groups, per scored token.
        effective_bits: stored per weight over the language model's linears.
    """

    chosen: tuple[int | None, ...]
    score: float
    effective_bits: float
    fraction_of_groups: float
    fraction_of_weights: float


def allocate(scheme: Scheme, groups: Sequence[Measured]) -> Allocation:
    """Decide for every group.

    By a fraction, groups are taken from the least sensitive on, so that a smaller fraction is
    always part of a larger one: as many groups as come nearest to the fraction of groups, or as
    stay within the fraction of weights. By bits, the least total score within the budget, exactly.

    Raises:
        UsageError: a budget below what the candidates can reach; the message says the minimum.
    """
    if scheme.measure == "effective_bits":
        return _allocation(groups, _within_budget(scheme, groups))
    ordered = sorted(range(len(groups)), key=lambda i: (groups[i].scores[0], i))
    if scheme.measure == "fraction_of_groups":
        taken = set(ordered[: math.floor(scheme.amount * len(groups) + 0.5)])
    else:
        taken = set(_within_weights(groups, ordered, scheme.amount))
    return _allocation(groups, [0 if i in taken else UNQUANTIZED for i in range(len(groups))])


def candidates_of(group: Measured) -> tuple[Candidate, ...]:
    """Return what a group may become for the solver, leaving it alone last."""
    from pytest_autoquant.allocation.knapsack import Candidate

    offered = zip(group.scores, group.bits, strict=True)
    return (
        *(Candidate(score=score, bits=bits) for score, bits in offered),
        Candidate(score=0.0, bits=16.0),
    )


def _within_budget(scheme: Scheme, groups: Sequence[Measured]) -> list[int | None]:
    from pytest_autoquant.allocation.knapsack import select

    found = select(
        [candidates_of(group) for group in groups],
        [group.weights for group in groups],
        scheme.amount,
    )
    if not found.is_satisfied:
        raise UsageError(
            f"scheme {scheme.name!r}: {scheme.amount:g} bits per weight cannot be reached with "
            f"{', '.join(scheme.candidates)}: the smallest is {found.minimum_effective_bits:.4g}; "
            "give at least that, or a candidate with fewer bits"
        )
    last = [len(group.scores) for group in groups]
    return [UNQUANTIZED if i == n else i for i, n in zip(found.chosen, last, strict=True)]


def _within_weights(
    groups: Sequence[Measured], ordered: Sequence[int], fraction: float
) -> list[int]:
    room = fraction * sum(group.weights for group in groups)
    taken: list[int] = []
    for i in ordered:
        room -= groups[i].weights
        if room < 0:
            break
        taken.append(i)
    return taken


def _allocation(groups: Sequence[Measured], chosen: Sequence[int | None]) -> Allocation:
    decided = list(zip(groups, chosen, strict=True))
    weights = sum(group.weights for group in groups)
    quantized = [(group, i) for group, i in decided if i is not None]
    stored = sum(g.weights * (16.0 if i is None else g.bits[i]) for g, i in decided)
    return Allocation(
        chosen=tuple(chosen),
        score=math.fsum(group.scores[i] for group, i in quantized),
        effective_bits=stored / weights,
        fraction_of_groups=len(quantized) / len(groups),
        fraction_of_weights=sum(group.weights for group, _ in quantized) / weights,
    )
