"""Everything the page's script reads: numbers with the text that shows them.

The script formats, ranks and averages nothing itself. It computes only what depends on two cases
that a reader chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.manifests.case_result import CaseResult, Group, finite
from pytest_autoquant.reports.charts.grid import GridCell, view_of
from pytest_autoquant.reports.charts.group_shares import GroupShares
from pytest_autoquant.reports.charts.layer_map import LayerPlace, layer_places
from pytest_autoquant.reports.charts.pareto import ParetoPoint
from pytest_autoquant.reports.charts.schemes import (
    BudgetPoint,
    SchemePoint,
    budget_points,
    scheme_points,
)
from pytest_autoquant.reports.charts.size_stability import StabilityPoint
from pytest_autoquant.reports.markdown.case_report import report_links, selection_sentence
from pytest_autoquant.reports.markdown.check_report import check_sentence, checked_groups
from pytest_autoquant.reports.markdown.elements import (
    RANDOM_WEIGHTS,
    both_bits,
    number,
    percent,
    whole_kl_shown,
)
from pytest_autoquant.reports.markdown.whole_model_report import whole_sentence
from pytest_autoquant.reports.report_model import ReportModel, ViewModel

#: Significant digits of a score in the page. They place colours and give the ratio of two scores,
#: which is shown with three; the ranking is computed from the exact scores. A page of 600 cases of
#: 250 groups is 1.4 MB smaller than with all 17.
_DIGITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """One model, method and size; ``first_case`` is the case to show first, if there is any."""

    model: str
    method: str
    size: str
    cells: tuple[GridCell, ...]
    frontier: tuple[ParetoPoint, ...]
    measured_frontier: tuple[ParetoPoint, ...]
    groups: GroupShares
    first_case: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSet:
    """The groups of one model, in module order; cases refer to them by position.

    ``keys`` are the short names, by which cases of other names have the same groups.
    """

    model: str
    names: tuple[str, ...]
    keys: tuple[str, ...]
    places: tuple[LayerPlace, ...]
    weights: tuple[int | None, ...]
    weights_shown: tuple[str, ...]
    linears: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSet:
    """The scores of a case, in module order.

    Attributes:
        scores: per scored token, None if not finite.
        shown: the scores as text, separated by spaces.
        shares: of the total score, as percentages without the sign, separated by spaces.
        errors: standard errors over captions, separated by spaces; empty if they are not known.
        ranks: the ranks that other captions may give, ``3`` or ``2-4``, likewise.
        kl: measured KL divergences, ``kl_errors`` their standard errors over captions and
            ``kl_ranks`` their ranks, all likewise.
        order: positions in module order, the most sensitive group first.
    """

    scores: tuple[float | None, ...]
    shown: str
    shares: str
    errors: str
    ranks: str
    kl: str
    kl_errors: str
    kl_ranks: str
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEntry:
    """What the page knows of a case.

    Attributes:
        bits: stored per weight, as text; ``total_shown`` likewise.
        measured: when, and how long it took, as text.
        groups: position of its ``GroupSet``.
        scores: position of its ``ScoreSet``.
        selected: ``1`` or ``0`` per group, empty if unknown.
        remarks: failures and notes.
        whole: what was measured with every group quantized, in a sentence; empty if that is not
            known. ``whole_shown`` is the measured KL as text.
        check: whether the score holds, in a sentence; empty if that is not known.
        links: addresses of its files relative to the page, by kind.
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
    bits: str
    total: float | None
    total_shown: str
    unit: str
    measured: str
    selection: str
    groups: int
    scores: int
    selected: str
    remarks: tuple[str, ...]
    whole: str
    whole_shown: str
    check: str
    quantizers: Mapping[str, str]
    links: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the page's script reads; ``first_view`` is the position of the view to show first."""

    views: tuple[PageView, ...]
    first_view: int
    stability: tuple[StabilityPoint, ...]
    group_sets: tuple[GroupSet, ...]
    score_sets: tuple[ScoreSet, ...]
    cases: tuple[CaseEntry, ...]
    schemes: tuple[SchemePoint, ...]
    budgets: tuple[BudgetPoint, ...]


def contents(model: ReportModel) -> Contents:
    """Return what the page shows of a session, a folder, or two runs."""
    results = model.results
    group_sets: dict[GroupSet, int] = {}
    score_sets: dict[ScoreSet, int] = {}
    entries = []
    for case in results.cases.values():
        ordered = case.in_module_order
        groups = group_sets.setdefault(_group_set(case, ordered), len(group_sets))
        scores = score_sets.setdefault(_score_set(case, ordered), len(score_sets))
        entries.append(_entry(case, ordered, groups, scores, _remarks(model, case)))
    return Contents(
        views=tuple(_page_view(model, shown) for shown in model.views),
        first_view=_first_view(model.views),
        stability=model.stability,
        group_sets=tuple(group_sets),
        score_sets=tuple(score_sets),
        cases=tuple(entries),
        schemes=scheme_points(results.schemes),
        budgets=budget_points(results.schemes),
    )


def _page_view(model: ReportModel, shown: ViewModel) -> PageView:
    cases = [case for case in model.results.cases.values() if view_of(case) == shown.view]
    scored = [cell.case for cell in shown.cells if cell.score is not None]
    return PageView(
        model=shown.view.model,
        method=shown.view.method,
        size=shown.view.size,
        cells=shown.cells,
        frontier=shown.frontier,
        measured_frontier=shown.measured_frontier,
        groups=shown.groups,
        first_case=next(iter([*scored, *(case.case_id for case in cases)]), None),
    )


def _first_view(views: Sequence[ViewModel]) -> int:
    """Return the last view with a measured case, else the last view; 0 without views."""
    measured = [place for place, shown in enumerate(views) if shown.is_measured]
    return measured[-1] if measured else max(len(views) - 1, 0)


def _group_set(case: CaseResult, ordered: tuple[Group, ...]) -> GroupSet:
    return GroupSet(
        model=case.model,
        keys=tuple(case.short_names.values()),
        names=tuple(group.name for group in ordered),
        places=layer_places(ordered),
        weights=tuple(group.weights for group in ordered),
        weights_shown=tuple("unknown" if g.weights is None else f"{g.weights:,}" for g in ordered),
        linears=tuple(len(group.modules) for group in ordered),
    )


def _score_set(case: CaseResult, ordered: tuple[Group, ...]) -> ScoreSet:
    places = {group.name: place for place, group in enumerate(ordered)}
    known = [group.error for group in ordered if group.error is not None]
    bars = known if len(known) == len(ordered) else []
    checked = checked_groups(case)
    kl_errors = [each.divergence.standard_error for each in checked]
    return ScoreSet(
        scores=tuple(_rounded(group.score) for group in ordered),
        shown=" ".join(number(group.score) for group in ordered),
        shares=" ".join(_share(group.score, case.total_score) for group in ordered),
        errors=" ".join(f"{bar.standard_error:.2g}" for bar in bars),
        ranks=" ".join(bar.ranks.replace(" to ", "-") for bar in bars),
        kl=" ".join(number(each.divergence.kl) for each in checked),
        kl_errors=" ".join(f"{error:.2g}" for error in kl_errors if error is not None),
        kl_ranks=" ".join(str(each.kl_rank) for each in checked),
        order=tuple(places[group.name] for group in case.groups),
    )


def _rounded(score: float | None) -> float | None:
    rounded = None if score is None else float(f"{score:.{_DIGITS}g}")
    return score if rounded is not None and math.isinf(rounded) else rounded


def _share(score: float | None, total: float | None) -> str:
    share = score / total if score is not None and total else None
    return percent(finite(share)).removesuffix("%")


def _remarks(model: ReportModel, case: CaseResult) -> tuple[str, ...]:
    failures = [f"Failed: {problem}" for problem in case.problems]
    error = model.results.errors.get(case.case_id)
    if error is not None:
        failures.append(f"Then failed: {error.problem}")
    random = [RANDOM_WEIGHTS.capitalize()] if case.has_random_weights else []
    return (*random, *failures, *case.notes)


def _entry(
    case: CaseResult, ordered: tuple[Group, ...], groups: int, scores: int, remarks: tuple[str, ...]
) -> CaseEntry:
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
        bits=both_bits(case.effective_bits, case.active_bits),
        total=case.total_score,
        total_shown=number(case.total_score),
        unit=case.unit,
        measured=case.measured,
        selection=selection_sentence(case),
        groups=groups,
        scores=scores,
        selected="".join(str(int(bool(g.selected))) for g in ordered) if known else "",
        remarks=remarks,
        whole=whole_sentence(case),
        whole_shown=whole_kl_shown(case),
        check=check_sentence(case),
        quantizers=case.quantizers,
        links=report_links(case),
    )
