"""Everything the page's script reads, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_autoquant.manifests.case_result import CaseResult, Group
from pytest_autoquant.reports.case_report import report_links, selection_sentence
from pytest_autoquant.reports.charts.grid import GridCell, View, grid_cells, views
from pytest_autoquant.reports.charts.pareto import ParetoPoint, frontier
from pytest_autoquant.reports.charts.size_stability import StabilityPoint, stability
from pytest_autoquant.reports.scheme_report import (
    BudgetPoint,
    SchemePoint,
    budget_points,
    scheme_points,
)
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSet:
    """The groups of one model, in module order; cases refer to them by position."""

    names: tuple[str, ...]
    projections: tuple[str, ...]
    layers: tuple[int | None, ...]
    weights: tuple[int | None, ...]
    linears: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEntry:
    """What the page knows of a case.

    Attributes:
        groups: position of its ``GroupSet``; ``scores`` of its scores in that order.
        selected: ``1`` or ``0`` per group, empty if unknown.
        links: files beside the page, by what they are.
    """

    id: str
    model: str
    method: str
    pair: str
    granularity: str
    size: str
    status: str
    alias_of: str | None
    experimental: bool
    format: str
    bits: float | None
    total: float | None
    unit: str
    selection: str
    groups: int
    scores: int
    selected: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    quantizers: Mapping[str, str]
    links: Mapping[str, str]


@dataclass(slots=True)
class Contents:
    """What the page's script reads; filled case by case."""

    views: list[View] = field(default_factory=list)
    grids: list[tuple[GridCell, ...]] = field(default_factory=list)
    frontiers: list[tuple[ParetoPoint, ...]] = field(default_factory=list)
    stability: list[StabilityPoint] = field(default_factory=list)
    group_sets: list[GroupSet] = field(default_factory=list)
    vectors: list[tuple[float | None, ...]] = field(default_factory=list)
    cases: list[CaseEntry] = field(default_factory=list)
    schemes: tuple[SchemePoint, ...] = ()
    budgets: tuple[BudgetPoint, ...] = ()


def contents(results: SessionResults) -> Contents:
    """Gather what the page shows of a session."""
    found = Contents()
    sets: dict[tuple[str, ...], int] = {}
    vectors: dict[tuple[float | None, ...], int] = {}
    for case in results.cases.values():
        ordered = case.in_module_order
        names = tuple(group.name for group in ordered)
        if names not in sets:
            sets[names] = len(sets)
            found.group_sets.append(_group_set(ordered))
        scores = tuple(group.score for group in ordered)
        if scores not in vectors:
            vectors[scores] = len(vectors)
            found.vectors.append(scores)
        found.cases.append(_entry(case, ordered, sets[names], vectors[scores]))
    for view in views(results):
        found.views.append(view)
        found.grids.append(grid_cells(results, view))
        found.frontiers.append(frontier(results, view))
    found.stability.extend(stability(results))
    found.schemes = scheme_points(results.schemes)
    found.budgets = budget_points(results.schemes)
    return found


def _entry(case: CaseResult, ordered: tuple[Group, ...], groups: int, scores: int) -> CaseEntry:
    known = all(group.selected is not None for group in ordered)
    return CaseEntry(
        id=case.case_id,
        model=case.model,
        method=case.method,
        pair=case.pair,
        granularity=case.granularity,
        size=case.size,
        status=case.status,
        alias_of=case.alias_of,
        experimental=case.experimental,
        format=case.format_name,
        bits=case.effective_bits,
        total=case.total_score,
        unit=case.unit,
        selection=selection_sentence(case),
        groups=groups,
        scores=scores,
        selected="".join(str(int(bool(g.selected))) for g in ordered) if known else "",
        problems=case.problems,
        notes=case.notes,
        quantizers=case.quantizers,
        links=report_links(case),
    )


def _group_set(ordered: tuple[Group, ...]) -> GroupSet:
    return GroupSet(
        names=tuple(group.name for group in ordered),
        projections=tuple(group.projection for group in ordered),
        layers=tuple(group.layer for group in ordered),
        weights=tuple(group.weights for group in ordered),
        linears=tuple(len(group.modules) for group in ordered),
    )
