"""Everything that a session's reports show, computed once for summary, pictures and page."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_autoquant.manifests.records.outcomes import StructureCheck
from pytest_autoquant.reports.charts.grid import (
    GridCell,
    View,
    grid_cells,
    in_vocabulary_order,
    view_of,
    views,
)
from pytest_autoquant.reports.charts.group_shares import GroupShares, group_shares
from pytest_autoquant.reports.charts.pareto import ParetoPoint, frontier, measured_frontier
from pytest_autoquant.reports.charts.size_stability import StabilityPoint, stability
from pytest_autoquant.reports.markdown.check_report import CheckSummary, check_summaries
from pytest_autoquant.reports.markdown.elements import scores_mean
from pytest_autoquant.reports.markdown.scheme.report import agreement_sentence
from pytest_autoquant.reports.markdown.session.caption_need import CaptionNeed, caption_needs
from pytest_autoquant.reports.markdown.whole_model_report import MeasuredOrder, measured_orders
from pytest_autoquant.reports.session_results import (
    Ranking,
    SessionResults,
    caution,
    most_sensitive_groups,
    origin,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewModel:
    """One model, method and size: its grid, its frontier and its groups by case.

    ``measured_frontier`` is that by measured KL divergence, empty unless every case has one;
    ``has_random_weights`` is true if a case of it was measured on random weights.
    """

    view: View
    cells: tuple[GridCell, ...]
    frontier: tuple[ParetoPoint, ...]
    measured_frontier: tuple[ParetoPoint, ...]
    groups: GroupShares
    has_random_weights: bool

    @property
    def unbeaten(self) -> frozenset[str]:
        """The cases on the frontier: by measured KL divergence where every case has one."""
        points = self.measured_frontier or self.frontier
        return frozenset(point.case for point in points if point.best)

    @property
    def is_measured(self) -> bool:
        """Whether the grid has a score."""
        return any(cell.score is not None for cell in self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportModel:
    """What the reports of a session or of a folder show.

    Attributes:
        sensitive: the most sensitive groups by model.
        origin: where the numbers come from: each label with its distinct values.
        caution: names the models with random weights; empty if there is none.
        agreement: how well predictions rank the schemes; empty with fewer than two schemes.
        orders: how the sum of the scores and the measured KL divergence order each view's cases.
        checks: whether the scores of each model hold, by measured KL divergence.
        caption_needs: how many captions each model needs, by its error bars.
        structures: structure cases in the order in which the vocabulary is documented.
    """

    results: SessionResults
    views: tuple[ViewModel, ...]
    stability: tuple[StabilityPoint, ...]
    caption_needs: tuple[CaptionNeed, ...]
    checks: tuple[CheckSummary, ...]
    orders: tuple[MeasuredOrder, ...]
    sensitive: tuple[Ranking, ...]
    origin: tuple[tuple[str, tuple[str, ...]], ...]
    agreement: str
    caution: str
    structures: tuple[StructureCheck, ...]

    @property
    def introduction(self) -> str:
        """What a score means; without a case, that the reports have none."""
        methods = {case.method for case in self.results.cases.values()}
        methods |= {found.scheme.method or "" for found in self.results.schemes.values()}
        if methods or not self.structures:
            return scores_mean(methods)
        return "No case was measured; the table below says what can run."


def report_model(results: SessionResults) -> ReportModel:
    """Compute what the reports show of ``results``."""
    return ReportModel(
        results=results,
        views=tuple(_view_model(results, view) for view in views(results)),
        stability=tuple(stability(results)),
        caption_needs=tuple(caption_needs(results)),
        checks=check_summaries(results.cases.values()),
        orders=measured_orders(results.cases.values()),
        sensitive=most_sensitive_groups(results.cases.values()),
        origin=tuple(origin(results)),
        caution=caution(results),
        agreement=agreement_sentence(results.schemes),
        structures=in_vocabulary_order(results.structures.values()),
    )


def _view_model(results: SessionResults, view: View) -> ViewModel:
    return ViewModel(
        view=view,
        cells=grid_cells(results, view),
        frontier=frontier(results, view),
        measured_frontier=measured_frontier(results, view),
        groups=group_shares(results, view),
        has_random_weights=any(
            case.has_random_weights for case in results.cases.values() if view_of(case) == view
        ),
    )
