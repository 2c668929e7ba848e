"""Deal cases to workers or shards: equal work, and each size on as few of them as possible.

A worker or shard records the tape of every size that it has cases of. So the sizes are laid end to
end, each as long as its cases take, and cut into equal parts. Where a size falls to several parts,
whole pairs are dealt in proportion. The result depends on the cases alone: all processes agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.grid.case import Case

#: Smallest fraction of a part's work for which recording another tape is worthwhile.
_MIN_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The ``index``-th of ``count`` parts of the cases, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``.

        Raises:
            ValueError: the text has another form, or I is not in 1 to N.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"shard must be I/N with I in 1 to N, got {text!r}")
        return cls(index=int(match[1]), count=int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def deal_cases(cases: Sequence[Case], parts: int, score_size: int) -> dict[str, int]:
    """Return the part of each case, from 0, by ``case_id``.

    Args:
        score_size: most captions scored; the work of a case is the number of captions it scores.
    """
    if not cases:
        return {}
    work = {
        size: sum(case.size == size for case in cases) * min(SIZES[size], score_size)
        for size in dict.fromkeys(case.size for case in cases)
    }
    total, start = sum(work.values()), 0.0
    part_of: dict[str, int] = {}
    for size, amount in work.items():
        stop = start + amount * parts / total
        members = [case for case in cases if case.size == size]
        part_of |= _deal_size(members, _overlaps(start, stop, parts))
        start = stop
    return part_of


def _overlaps(start: float, stop: float, parts: int) -> dict[int, float]:
    """Return how much of the interval from ``start`` to ``stop`` each part ``[i, i + 1)`` covers.

    Parts that cover less than ``_MIN_SHARE`` are left out, unless no other part is left.
    """
    overlaps = {
        part: min(stop, part + 1) - max(start, part)
        for part in range(int(start), parts)
        if part < stop
    }
    kept = {part: share for part, share in overlaps.items() if share >= _MIN_SHARE}
    return kept or {max(overlaps, key=lambda part: overlaps[part]): 1.0}


def _deal_size(cases: Sequence[Case], shares: Mapping[int, float]) -> dict[str, int]:
    """Give the cases of each pair to the part that is furthest behind its share.

    Where there are fewer pairs than parts, cases are dealt one by one.
    """
    by_pair: dict[str, list[Case]] = {}
    for case in cases:
        by_pair.setdefault(case.combination.pair.name, []).append(case)
    if len(by_pair) < len(shares):
        by_pair = {case.case_id: [case] for case in cases}
    num_dealt = dict.fromkeys(shares, 0)
    part_of: dict[str, int] = {}
    for members in by_pair.values():
        part = min(num_dealt, key=lambda part: num_dealt[part] / shares[part])
        num_dealt[part] += len(members)
        part_of |= {case.case_id: part for case in members}
    return part_of
