"""The Pareto frontier: the cases that no other case beats in score and stored bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_autoquant.reports.charts.grid import View, view_of
from pytest_autoquant.reports.markdown.elements import bits, number
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """A case in the plot of score against bits.

    Attributes:
        bits: stored per weight, scales included.
        score: the case's total, per scored token.
        best: no other case has less of one and not more of the other.
        shown: bits and score as text.
    """

    case: str
    bits: float
    score: float
    best: bool
    kind: str
    shown: tuple[str, str]
    detail: str


def frontier(results: SessionResults, view: View) -> tuple[ParetoPoint, ...]:
    """Return the measured cases of a view by bits; those that no other case beats are marked.

    One case beats another if it has no more bits and no higher score, and less of at least one
    (Pareto dominance). Aliases and cases whose score is not above zero, which a log scale cannot
    show, are left out.
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
                shown=(bits(weight_bits), number(score)),
                detail=f"{case.pair}, {case.granularity}: {number(score)} per token at "
                f"{bits(weight_bits)} bits per weight",
            )
        )
    return tuple(points)
