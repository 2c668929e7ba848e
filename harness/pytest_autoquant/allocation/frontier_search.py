"""Find the fewest bits per weight whose measured damage stays within a limit.

The selections on the exact frontier of bits and predicted score are measured by bisection: whatever
passes, fewer bits are tried next, and whatever fails, more. Measured damage need not fall with
every bit that is added, so a selection that was not measured may pass with fewer bits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_autoquant.allocation.knapsack import ExactFrontier
from pytest_autoquant.allocation.scheme import Allocation, allocation_of
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS

#: Most selections that are measured: each quantizes, calibrates and runs the whole model. They
#: tell 2,048 selections apart; of more, the last two differ by at most 12 / 2^11 bits per weight.
MOST_MEASUREMENTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A selection that was measured; ``kl`` in nats per token."""

    allocation: Allocation
    kl: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search measured.

    Attributes:
        steps: in the order in which they were measured.
        num_selections: selections on the frontier that quantize a group.
        num_unmeasured: those between the found one and the next smaller one that was measured.
    """

    steps: tuple[Step, ...]
    num_selections: int
    num_unmeasured: int

    @property
    def found(self) -> Allocation | None:
        """The passing selection with the fewest bits, None if none passes."""
        passing = [step.allocation for step in self.steps if step.passed]
        return min(passing, key=lambda each: each.effective_bits, default=None)

    @property
    def closest(self) -> Step:
        """The step with the least measured damage."""
        return min(self.steps, key=lambda step: step.kl if math.isfinite(step.kl) else math.inf)


def search_frontier(
    groups: Sequence[ScoredGroup], limit: float, measure: Callable[[Allocation], float]
) -> Search:
    """Measure selections until the fewest bits within a limit are found.

    Args:
        groups: scores and bits of the candidates; one group or more can store fewer than 16.
        limit: the largest measured damage that passes. Without any quantization it is 0.
        measure: returns the damage of a selection; one that is not finite does not pass.
    """
    frontier = ExactFrontier([group.with_unquantized() for group in groups], UNQUANTIZED_BITS)
    count = sum(bits < UNQUANTIZED_BITS for bits in frontier.bits)
    steps: list[Step] = []
    fails, passes = -1, count
    while passes - fails > 1 and len(steps) < MOST_MEASUREMENTS:
        place = _between(frontier.bits, fails, passes, MOST_MEASUREMENTS - len(steps))
        chosen = zip(groups, frontier[place].chosen, strict=True)
        allocation = allocation_of(groups, [group.candidate(i) for group, i in chosen])
        kl = measure(allocation)
        steps.append(Step(allocation=allocation, kl=kl, passed=kl <= limit))
        fails, passes = (fails, place) if steps[-1].passed else (place, passes)
    return Search(
        steps=tuple(steps), num_selections=count, num_unmeasured=max(0, passes - fails - 1)
    )


def _between(bits: Sequence[float], fails: int, passes: int, left: int) -> int:
    """Return the place to measure next: the fewest bits first, then the middle.

    The middle one of the places if ``left`` measurements reach them all, else the one in the middle
    of the bits.
    """
    if fails < 0:
        return 0
    if passes - fails - 1 < 2**left:
        return (fails + passes) // 2
    highest = bits[passes] if passes < len(bits) else UNQUANTIZED_BITS
    middle = bisect_right(bits, (bits[fails] + highest) / 2) - 1
    return min(max(middle, fails + 1), passes - 1)
