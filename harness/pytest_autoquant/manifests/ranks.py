"""Ranks of layer groups, and how alike two scores rank them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Groups whose order matters most: the top of the ranking.
TOP = 10


def spearman(scores: Sequence[tuple[float | None, float | None]]) -> float:
    """Return Spearman's rank correlation of pairs of scores; ties share their mean rank.

    Scores that are not finite rank above all others. Equal orders give exactly 1. If all scores
    on one side are tied, so that the correlation is undefined, different orders give 0.
    """
    import numpy as np

    if not scores:
        return 1.0
    first, second = (
        _ranks([_order(score) for score in side]) for side in zip(*scores, strict=True)
    )
    if np.array_equal(first, second):
        return 1.0
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def places(scores: Mapping[str, float]) -> dict[str, int]:
    """Return the rank of each name, 1 for the highest score; ties keep their order."""
    ordered = sorted(scores, key=lambda name: -scores[name])
    return {name: place for place, name in enumerate(ordered, start=1)}


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Return ranks from the lowest, ties with their mean; importing scipy.stats takes a second."""
    import numpy as np

    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    mean: NDArray[np.float64] = count.cumsum() - (count - 1) / 2
    return mean[place]


def _order(score: float | None) -> float:
    return math.inf if score is None else score
