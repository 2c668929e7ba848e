"""The frontier: which cases no other beats in both score and stored bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_autoquant.reports.charts.grid import View, view_of
from pytest_autoquant.reports.markdown import bits, number
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """A case on the plot of score against bits; ``best``: no case has less of one and not more of
    the other."""

    case: str
    bits: float
    score: float
    best: bool
    kind: str
    detail: str


def frontier(results: SessionResults, view: View) -> tuple[ParetoPoint, ...]:
    """Return the measured cases of a view by bits, with those that no other beats marked.

    A case is beaten by one with no more bits and no more score, and less of either (Pareto). Only
    what a log scale can show takes part: a score above zero. Aliases are one case.
    """
    cases = [
        (case.effective_bits, case.total_score, case)
        for case in results.cases.values()
        if view_of(case) == view and case.status == "measured" and not case.is_old
        if case.effective_bits is not None and case.total_score is not None and case.total_score > 0
    ]
    cases.sort(key=lambda found: found[:2])
    points, last = [], (0.0, math.inf)
    for weight_bits, score, case in cases:
        best = score < last[1] or (weight_bits, score) == last
        if best:
            last = weight_bits, score
        points.append(
            ParetoPoint(
                case=case.case_id,
                bits=weight_bits,
                score=score,
                best=best,
                kind="not beaten" if best else "beaten by another case",
                detail=f"{case.pair}, {case.granularity}: {number(score)} per token at "
                f"{bits(weight_bits)} bits per weight",
            )
        )
    return tuple(points)
