"""A layer group with the score and the stored bits of every format it can take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """One layer group; all its linears take the same candidate format.

    Attributes:
        name: name of the group's first module.
        scores: sensitivity per scored token, by candidate.
        bits: bits stored per weight, scales included, by candidate.
        weights: number of weights in the group.
        excluded: candidates, by index, that the group must not take; one at least is left.
    """

    name: str
    scores: tuple[float, ...]
    bits: tuple[float, ...]
    weights: int
    excluded: frozenset[int] = frozenset()

    def with_unquantized(self) -> ScoredGroup:
        """Return the group with one more candidate, the last: not quantized, score 0."""
        return replace(self, scores=(*self.scores, 0.0), bits=(*self.bits, UNQUANTIZED_BITS))

    @property
    def allowed(self) -> tuple[int, ...]:
        """Indices of the candidates that the group may take."""
        return tuple(i for i in range(len(self.bits)) if i not in self.excluded)

    def without_excluded(self) -> ScoredGroup:
        """Return the group with its allowed candidates only, in their order."""
        return replace(
            self,
            scores=tuple(self.scores[i] for i in self.allowed),
            bits=tuple(self.bits[i] for i in self.allowed),
            excluded=frozenset(),
        )

    @property
    def smallest(self) -> int:
        """Index of the allowed candidate with the fewest bits; of equal ones, the best scored."""
        return min(self.allowed, key=lambda i: (self.bits[i], self.scores[i]))
