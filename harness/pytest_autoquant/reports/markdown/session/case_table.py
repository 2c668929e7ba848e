"""The table of measured cases, least damage first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.manifests.case_result import UNKNOWN, CaseResult
from pytest_autoquant.reports.charts.grid import View, view_of
from pytest_autoquant.reports.markdown.case_report import report_links
from pytest_autoquant.reports.markdown.elements import (
    INFEASIBLE_MEANS,
    WHOLE_MEANS,
    bits,
    code,
    correlation,
    number,
    table,
    text,
    whole_kl_shown,
)
from pytest_autoquant.reports.markdown.session.sentences import run_of
from pytest_autoquant.reports.report_model import ReportModel
from pytest_autoquant.reports.session_results import SessionResults

_CASE_HEADERS = (
    "pair",
    "granularity",
    "size",
    "bits per weight",
    "total score",
    "most sensitive group",
    "quantized under budget",
    "bits under budget",
)


def measured_cases(model: ReportModel) -> list[str]:
    """Return the section of measured cases; nothing if there are none."""
    results = model.results
    by_kl = {shown.view for shown in model.views if shown.measured_frontier}
    measured = sorted(results.by_status("measured"), key=lambda case: _by_damage(case, by_kl))
    if not measured:
        return []
    has_kl = any(case.whole is not None for case in measured)
    is_mixture = has_active_bits(measured)
    apart, names = _views_apart(measured)
    header, cells = _check_column(measured)
    rows = [
        (
            *name,
            *_case_row(model, case, has_kl, is_mixture),
            *cell,
            *run_cell(results, case.case_id),
        )
        for case, name, cell in zip(measured, names, cells, strict=True)
    ]
    return [
        "## Cases, least damage first",
        table(
            (*apart, *_case_headers(has_kl, is_mixture), *header, *run_header(results)),
            rows,
            right=" " * len(apart)
            + "   rr"
            + "r" * (has_kl + is_mixture)
            + " rr"
            + "r" * (len(header) + is_mixture),
        ),
        "\\* on the frontier: no other case of the size has less of damage or bits, and not more "
        "of the other. Damage is the measured KL where every case of the size has one, else the "
        "total score.",
        *([WHOLE_MEANS] if has_kl else []),
        *_orders(model),
        *filter(None, [infeasible_note(measured)]),
    ]


def run_header(results: SessionResults) -> tuple[str, ...]:
    """Return the header of the column that marks the last run, if there was more than one."""
    return () if results.is_from_one_run else ("run",)


def run_cell(results: SessionResults, case_id: str) -> tuple[str, ...]:
    """Return the cell of that column."""
    return () if results.is_from_one_run else (run_of(results, case_id),)


def _orders(model: ReportModel) -> list[str]:
    """Say where what was measured contradicts the sum of the scores."""
    sentences = "\n".join(f"- {text(order.sentence)}" for order in model.orders)
    return [sentences] if sentences else []


def has_active_bits(cases: Iterable[CaseResult]) -> bool:
    """Whether a case is of a mixture of experts, of which a token uses only some weights."""
    return any(case.active_bits is not None for case in cases)


def _case_headers(has_kl: bool, is_mixture: bool) -> tuple[str, ...]:
    return (
        *_CASE_HEADERS[:4],
        *(("per active weight",) if is_mixture else ()),
        _CASE_HEADERS[4],
        *(("measured KL",) if has_kl else ()),
        *_CASE_HEADERS[5:],
        *(("active bits under budget",) if is_mixture else ()),
    )


def _case_row(
    model: ReportModel, case: CaseResult, has_kl: bool, is_mixture: bool
) -> tuple[str, ...]:
    shown = next(shown for shown in model.views if shown.view == view_of(case))
    star = " \\*" if case.case_id in shown.unbeaten else ""
    by_kl = bool(shown.measured_frontier)
    return (
        _linked(case) + (" (exp.)" if case.experimental else ""),
        code(case.granularity),
        text(case.size),
        bits(case.effective_bits),
        *((_active(case, case.active_bits),) if is_mixture else ()),
        number(case.total_score) + ("" if by_kl else star),
        *((whole_kl_shown(case) + (star if by_kl else ""),) if has_kl else ()),
        code(case.top_group),
        quantized(case),
        bits(case.selection.bits),
        *((_active(case, case.selection.active_bits),) if is_mixture else ()),
    )


def _active(case: CaseResult, active: float | None) -> str:
    return "as stored" if case.active_bits is None else bits(active)


def _views_apart(
    cases: Sequence[CaseResult],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the headers and cells of model and method, each where the cases have several."""
    columns = {"model": [case.model for case in cases], "method": [case.method for case in cases]}
    several = {name: found for name, found in columns.items() if len(set(found)) > 1}
    cells = zip(*(map(text, found) for found in several.values()), strict=True)
    return tuple(several), list(cells) if several else [()] * len(cases)


def _check_column(cases: Sequence[CaseResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the cell per case of a column; nothing where no case was checked."""
    checks = [case.score_check for case in cases]
    if not any(checks):
        return (), [()] * len(checks)
    cells = ["" if check is None else correlation(check.spearman) for check in checks]
    return ("Spearman with KL",), [(cell,) for cell in cells]


def _linked(case: CaseResult) -> str:
    address = next(iter(report_links(case).values()))
    return f"[{code(case.pair)}]({address})"


def infeasible_note(cases: Iterable[CaseResult]) -> str:
    """Return the footnote on ``infeasible``, empty if ``quantized`` returns it for no case."""
    return INFEASIBLE_MEANS if any(map(_is_infeasible, cases)) else ""


def _is_infeasible(case: CaseResult) -> bool:
    """Return whether no selection of groups stays within the bit budget."""
    return not case.is_old and not case.selection.is_satisfied


def quantized(case: CaseResult) -> str:
    """Return how many groups the bit budget keeps quantized."""
    if case.is_old:
        return UNKNOWN
    if _is_infeasible(case):
        return "infeasible"
    return f"{case.selected_groups} of {len(case.groups)}"


def _by_damage(line: CaseResult, by_kl: Collection[View]) -> tuple[int, str, str, float, str]:
    """Sort by damage within a view, by the measured KL of the views in ``by_kl``.

    Scores of two models or methods do not compare.
    """
    order = list(SIZES).index(line.size) if line.size in SIZES else len(SIZES)
    damage = line.whole_kl if view_of(line) in by_kl else line.total_score
    return order, line.model, line.method, damage or 0.0, line.case_id
