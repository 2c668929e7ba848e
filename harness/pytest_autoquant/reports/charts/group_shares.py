"""Groups by case: each layer group's share of the total score, over the cases of a view."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from pytest_autoquant.manifests.case_result import CaseResult, finite
from pytest_autoquant.reports.charts.grid import View, view_of
from pytest_autoquant.reports.markdown import percent
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSummary:
    """A layer group over several cases.

    Attributes:
        cases: number of cases that have the group.
        mean: of the group's shares of a case's total, 1 being all of it; None if not finite.
        shown: mean, lowest and highest as percentages.
    """

    group: str
    cases: int
    mean: float | None
    lowest: float | None
    highest: float | None
    shown: tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShares:
    """The groups of a view, largest mean share first; ``cases`` are ids, least damage first."""

    cases: tuple[str, ...] = ()
    groups: tuple[ShareSummary, ...] = ()


def group_shares(results: SessionResults, view: View) -> GroupShares:
    """Return the shares over the measured cases of a view that have a total score."""
    cases = [
        case
        for case in results.cases.values()
        if view_of(case) == view and case.status == "measured" and case.total_score
    ]
    cases.sort(key=lambda case: case.total_score or 0.0)
    shares: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        for group, share in _in_module_order(case):
            shares[group].append(share)
    ordered = sorted(shares.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    return GroupShares(
        cases=tuple(case.case_id for case in cases),
        groups=tuple(_summary(group, values) for group, values in ordered),
    )


def _in_module_order(case: CaseResult) -> list[tuple[str, float]]:
    shares = case.shares
    return [(name, shares[name]) for name in case.module_order]


def _summary(group: str, values: list[float]) -> ShareSummary:
    mean = finite(sum(values) / len(values))
    lowest, highest = finite(min(values)), finite(max(values))
    return ShareSummary(
        group=group,
        cases=len(values),
        mean=mean,
        lowest=lowest,
        highest=highest,
        shown=(percent(mean), percent(lowest), percent(highest)),
    )
