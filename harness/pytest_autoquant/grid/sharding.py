"""Dealing cases to workers or shards: equal work, and each size on as few of them as possible.

Whoever runs a case captures the tape of its size. Sizes are laid end to end, as long as their cases
take, and cut into equal parts; within a size that falls to several parts, whole pairs are dealt in
proportion. The result depends on the cases alone, so everyone who computes it agrees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.grid.case import Case

_LEAST_SHARE = 0.1
"""Of a part's work: less is not worth a tape of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The ``index``-th of ``count`` parts of the cases, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``; raises ValueError for anything else and for I outside 1 to N."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(text)
        return cls(index=int(found[1]), count=int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def partition(cases: Sequence[Case], parts: int, score_size: int) -> dict[str, int]:
    """Return the part of each case, from 0, by ``case_id``.

    Args:
        score_size: most captions scored; what a case of a size costs goes by how many it scores.
    """
    lengths = {
        size: sum(case.size == size for case in cases) * min(SIZES[size], score_size)
        for size in dict.fromkeys(case.size for case in cases)
    }
    total, start = sum(lengths.values()), 0.0
    dealt: dict[str, int] = {}
    for size, length in lengths.items():
        stop = start + length * parts / total
        members = [case for case in cases if case.size == size]
        dealt |= _deal(members, _shares(start, stop, parts))
        start = stop
    return dealt


def _shares(start: float, stop: float, parts: int) -> dict[int, float]:
    """Return how much of ``start`` to ``stop`` lies in each part ``[i, i + 1)``."""
    overlaps = {
        part: min(stop, part + 1) - max(start, part)
        for part in range(int(start), parts)
        if part < stop
    }
    kept = {part: share for part, share in overlaps.items() if share >= _LEAST_SHARE}
    return kept or {max(overlaps, key=lambda part: overlaps[part]): 1.0}


def _deal(cases: Sequence[Case], shares: Mapping[int, float]) -> dict[str, int]:
    """Give each pair's cases to the part that is furthest behind its share.

    Where there are fewer pairs than parts, cases go one by one.
    """
    by_pair: dict[str, list[Case]] = {}
    for case in cases:
        by_pair.setdefault(case.combination.pair.name, []).append(case)
    if len(by_pair) < len(shares):
        by_pair = {case.case_id: [case] for case in cases}
    taken = dict.fromkeys(shares, 0)
    dealt: dict[str, int] = {}
    for members in by_pair.values():
        part = min(taken, key=lambda part: taken[part] / shares[part])
        taken[part] += len(members)
        dealt |= {case.case_id: part for case in members}
    return dealt
