"""A layer group with the score and the stored bits of every format it can take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS

#: What a bit budget counts: the weights that are stored, or those that a token is multiplied with.
Cost = Literal["stored", "active"]
COSTS: tuple[Cost, ...] = get_args(Cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """One layer group; all its linears take the same candidate format.

    Attributes:
        name: name of the group's first module.
        scores: sensitivity per scored token, by candidate.
        bits: bits stored per weight, every scale included, by candidate; times
            ``weights`` a whole number.
        weights: number of weights in the group.
        left_out: indices of the candidates that the group cannot take.
        active_weights: those that a token is multiplied with, fewer in a mixture of experts; None
            where those are all.
    """

    name: str
    scores: tuple[float, ...]
    bits: tuple[float, ...]
    weights: int
    left_out: frozenset[int] = frozenset()
    active_weights: int | None = None

    def counted_by(self, cost: Cost) -> ScoredGroup:
        """Return the group with the weights that a cost counts."""
        if cost == "stored" or self.active_weights is None:
            return self
        return replace(self, weights=self.active_weights)

    @property
    def takeable(self) -> tuple[int, ...]:
        """Indices of the candidates that the group can take."""
        return tuple(i for i in range(len(self.scores)) if i not in self.left_out)

    def with_unquantized(self) -> ScoredGroup:
        """Return the group with the candidates it can take, then one more: not quantized."""
        return replace(
            self,
            scores=(*(self.scores[i] for i in self.takeable), 0.0),
            bits=(*(self.bits[i] for i in self.takeable), UNQUANTIZED_BITS),
            left_out=frozenset(),
        )

    def candidate(self, place: int) -> int | None:
        """Return a candidate of ``with_unquantized`` as this group's own; None if unquantized."""
        return (*self.takeable, None)[place]

    @property
    def stored_bits(self) -> tuple[int, ...]:
        """Bits that the whole group stores, by candidate."""
        return tuple(round(bits * self.weights) for bits in self.bits)

    @property
    def smallest(self) -> int:
        """Index of the candidate that stores the fewest bits; of equal ones, the best scored."""
        return min(range(len(self.bits)), key=lambda i: (self.bits[i], self.scores[i]))


def active_bits(groups: Sequence[ScoredGroup], bits: Sequence[float]) -> float | None:
    """Return the bits per weight that a token is multiplied with; None where those are all.

    Args:
        bits: stored per weight, by group.
    """
    if all(group.active_weights is None for group in groups):
        return None
    weights = [group.counted_by("active").weights for group in groups]
    return sum(w * b for w, b in zip(weights, bits, strict=True)) / sum(weights)


def rounded_up(bits: float) -> str:
    """Return bits per weight as a budget that they stay within: four decimals, rounded up."""
    return f"{math.ceil(bits * 1e4 - 1e-6) / 1e4:.6g}"
