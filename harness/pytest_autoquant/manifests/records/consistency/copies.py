"""Two copies of one fact, and what is said of those that disagree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_autoquant.manifests.records.packed_scores import unpack_scores

#: Largest relative difference of two sums of the same numbers, added in another order.
_ROUNDING = 1e-9

#: Likewise for a sum of numbers that are stored in fp32.
_FP32_ROUNDING = 1e-5

_ADVICE = "one of them was changed: restore the file, or measure again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """One fact in two places of a record; ``of`` names the group or layer, if it is one's own."""

    true: object
    at: str
    copy: object
    copy_at: str
    of: str = ""

    @property
    def agree(self) -> bool:
        """Whether both are the same value; sums may differ by rounding."""
        if isinstance(self.true, float) and isinstance(self.copy, float):
            return math.isclose(self.true, self.copy, rel_tol=_ROUNDING, abs_tol=0.0)
        return self.true == self.copy

    def __str__(self) -> str:
        subject = f"{self.of}: " if self.of else ""
        return (
            f"{subject}{self.at} is {self.true!r}, but {self.copy_at} says {self.copy!r}; {_ADVICE}"
        )


def disagreeing(copies: Iterable[Copies]) -> Iterator[str]:
    """Yield a sentence per fact whose copies disagree."""
    return (str(each) for each in copies if not each.agree)


def packed_problem(
    packed: str, count: int, tokens: int, quotient: float, *, at: str, quotient_at: str
) -> str | None:
    """Return why numbers by caption are damaged or do not give a quotient, None if they do.

    Args:
        packed: ``count`` numbers; see ``packed_scores``.
        quotient: what their sum / ``tokens`` is, as the record has it.
    """
    try:
        given = math.fsum(unpack_scores(packed, count)) / max(1, tokens)
    except ValueError as error:
        return f"{at} {error}"
    if math.isclose(given, quotient, rel_tol=_FP32_ROUNDING, abs_tol=1e-30):
        return None
    return f"{at} gives {given!r} per token, {quotient_at} is {quotient!r}; {_ADVICE}"
