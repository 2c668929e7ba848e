"""Which cases a run selected, and which of them one process measures together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_autoquant.grid.case import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The cases of a run.

    Attributes:
        selected: every selected case of the run, in order, those of other shards included.
        parts: the part of each case of this shard, by ``case_id``; one worker takes one part.
    """

    selected: tuple[Case, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)

    def holds(self, case: Case) -> bool:
        """Whether the case belongs to this shard."""
        return case.case_id in self.parts

    def batch_of(self, case: Case) -> tuple[Case, ...]:
        """Return the cases of the same size and part: those that the same worker measures."""
        part = self.parts.get(case.case_id)
        return tuple(
            other
            for other in self.selected
            if other.size == case.size and self.parts.get(other.case_id, -1) == part
        )
