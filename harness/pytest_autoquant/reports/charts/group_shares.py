"""Groups by case: each layer group's share of the total score, over the cases of a view."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from pytest_autoquant.manifests.case_result import finite
from pytest_autoquant.reports.charts.grid import View, view_of
from pytest_autoquant.reports.markdown.elements import percent
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSummary:
    """A layer group over several cases.

    Attributes:
        group: its name; the short one where the cases name groups in several ways.
        key: its short name, by which cases of other names have it.
        cases: number of cases that have the group.
        mean: of the group's shares of a case's total, 1 being all of it; None if not finite.
        shown: mean, lowest and highest as percentages.
    """

    group: str
    key: str
    cases: int
    mean: float | None
    lowest: float | None
    highest: float | None
    shown: tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShares:
    """The groups of a view, largest mean share first; ``cases`` are ids, least damage first.

    ``is_aligned`` is true where the cases name groups in several ways.
    """

    cases: tuple[str, ...] = ()
    groups: tuple[ShareSummary, ...] = ()
    is_aligned: bool = False


def group_shares(results: SessionResults, view: View) -> GroupShares:
    """Return the shares over the measured cases of a view that have a total score."""
    cases = [
        case
        for case in results.cases.values()
        if view_of(case) == view and case.status == "measured" and case.total_score
    ]
    cases.sort(key=lambda case: case.total_score or 0.0)
    names: dict[str, dict[str, None]] = defaultdict(dict)
    shares: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        of_case = case.shares
        for name, key in case.short_names.items():
            names[key][name] = None
            shares[key].append(of_case[name])
    is_aligned = any(len(found) > 1 for found in names.values())
    ordered = sorted(shares.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    return GroupShares(
        cases=tuple(case.case_id for case in cases),
        groups=tuple(
            _summary(key if is_aligned else next(iter(names[key])), key, values)
            for key, values in ordered
        ),
        is_aligned=is_aligned,
    )


def _summary(group: str, key: str, values: list[float]) -> ShareSummary:
    mean = finite(sum(values) / len(values))
    lowest, highest = finite(min(values)), finite(max(values))
    return ShareSummary(
        group=group,
        key=key,
        cases=len(values),
        mean=mean,
        lowest=lowest,
        highest=highest,
        shown=(percent(mean), percent(lowest), percent(highest)),
    )
