"""The Pareto frontier: the cases that no other case beats in score and stored bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.reports.charts.grid import View, view_of
from pytest_autoquant.reports.markdown.elements import bits, number, whole_kl_shown
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """A case in the plot of damage against bits.

    Attributes:
        bits: stored per weight, scales included.
        score: the case's total, per scored token.
        kl: measured with every group quantized, in nats per token; None if it is not known.
        damage: the one of the two that the plot compares.
        best: no other case has less of bits or damage, and not more of the other.
        shown: bits, score and measured KL as text.
    """

    case: str
    bits: float
    score: float
    kl: float | None
    damage: float
    best: bool
    kind: str
    shown: tuple[str, str, str]
    detail: str


def frontier(results: SessionResults, view: View) -> tuple[ParetoPoint, ...]:
    """Return the measured cases of a view by bits and total score; the unbeaten ones are marked.

    One case beats another if it has no more bits and no more damage, and less of at least one
    (Pareto dominance). Aliases and cases whose damage is not above zero, which a log scale cannot
    show, are left out.
    """
    return _points([(case.total_score or 0.0, case) for case in _compared(results, view)])


def measured_frontier(results: SessionResults, view: View) -> tuple[ParetoPoint, ...]:
    """Return them by bits and measured KL divergence; none if a case of the view has none."""
    cases = _compared(results, view)
    if not all(case.whole_kl for case in cases):
        return ()
    return _points([(case.whole_kl or 0.0, case) for case in cases])


def _compared(results: SessionResults, view: View) -> list[CaseResult]:
    return [
        case
        for case in results.cases.values()
        if view_of(case) == view and case.status == "measured" and not case.is_old
        if case.effective_bits is not None and case.total_score is not None and case.total_score > 0
    ]


def _points(damages: Sequence[tuple[float, CaseResult]]) -> tuple[ParetoPoint, ...]:
    cases = [(case.effective_bits or 0.0, damage, case) for damage, case in damages]
    cases.sort(key=lambda found: found[:2])
    points, last = [], (0.0, math.inf)
    for weight_bits, damage, case in cases:
        best = damage < last[1] or (weight_bits, damage) == last
        if best:
            last = weight_bits, damage
        points.append(_point(case, weight_bits, damage, best))
    return tuple(points)


def _point(case: CaseResult, weight_bits: float, damage: float, best: bool) -> ParetoPoint:
    score = number(case.total_score)
    measured = "" if case.whole is None else f", measured KL {whole_kl_shown(case)} nats per token"
    return ParetoPoint(
        case=case.case_id,
        bits=weight_bits,
        score=case.total_score or 0.0,
        kl=case.whole_kl,
        damage=damage,
        best=best,
        kind="not beaten" if best else "beaten by another case",
        shown=(bits(weight_bits), score, whole_kl_shown(case)),
        detail=f"{case.pair}, {case.granularity}: {score} per token{measured} at "
        f"{bits(weight_bits)} bits per weight",
    )
