"""The reports of a session or a folder: ``summary.json`` and ``summary.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from statistics import median

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.manifests.case_result import UNKNOWN, CaseResult
from pytest_autoquant.manifests.records.outcomes import FailedCase
from pytest_autoquant.manifests.records.session_summary import (
    GroupShare,
    LastRun,
    OutcomeCounts,
    SessionSummary,
    SummaryCase,
)
from pytest_autoquant.reports.charts.grid import View, grid_file, view_of
from pytest_autoquant.reports.markdown.case_report import report_links
from pytest_autoquant.reports.markdown.check_report import CHECK_MEANS
from pytest_autoquant.reports.markdown.elements import (
    ALIGNED_MEANS,
    GROUPS_MEAN,
    INFEASIBLE_MEANS,
    LOST_MEANS,
    SHARES_MEAN,
    STABILITY_MEANS,
    WHOLE_MEANS,
    bits,
    code,
    correlation,
    number,
    percent,
    table,
    text,
    whole_kl_shown,
)
from pytest_autoquant.reports.markdown.scheme_report import SCHEMES_MARKDOWN, schemes_table
from pytest_autoquant.reports.markdown.timing_report import (
    TIMING_MEANS,
    timing_headers,
    timing_rows,
)
from pytest_autoquant.reports.report_model import ReportModel
from pytest_autoquant.reports.session_results import SessionResults, caution, titles
from pytest_autoquant.text import counted, shown_duration, shown_time

SUMMARY_MARKDOWN = "summary.md"


def session_summary(model: ReportModel) -> SessionSummary:
    """Return the record that ``summary.json`` holds."""
    results = model.results
    return SessionSummary(
        counts=results.counts,
        shard=results.shard,
        command=results.command,
        last_run=results.last_run,
        cases=tuple(map(_summary_case, results.cases.values())),
        skipped=tuple(results.skips.values()),
        errors=tuple(results.errors.values()),
        gated=results.gated,
        reruns=results.reruns,
        kept=tuple(sorted(results.kept)),
        lost=results.lost,
        structure=tuple(results.structures.values()),
        most_sensitive_groups=tuple(
            GroupShare(group=group, mean_share=share, model=ranking.model, method=ranking.method)
            for ranking in model.sensitive
            for group, share in ranking.groups
        ),
        left_out=tuple(results.left_out),
        write_errors=tuple(results.write_errors),
    )


def _summary_case(case: CaseResult) -> SummaryCase:
    return SummaryCase(
        case_id=case.case_id,
        pair=case.pair,
        granularity=case.granularity,
        size=case.size,
        status=case.status,
        alias_of=case.alias_of,
        experimental=case.experimental,
        problems=case.problems,
        effective_bits=case.effective_bits,
        active_bits=case.active_bits,
        total_score=case.total_score,
        top_group=case.top_group,
        selected_groups=case.selected_groups,
        manifest=case.manifest,
        num_groups=len(case.groups),
        selection_bits=case.selection.bits,
        selection_active_bits=case.selection.active_bits,
        is_satisfied=case.selection.is_satisfied,
        weights=case.source.weights,
        measured_at=case.source.measured_at,
        seconds=case.source.seconds,
        whole_model_kl=case.whole_kl,
    )


def summary_markdown(model: ReportModel) -> str:
    """Return the overview as Markdown, for a CI job summary among others."""
    results = model.results
    parts = ["# Quantization sensitivity", text(counts_sentence(results))]
    parts += [text(sentence) for sentence in last_run_sentences(results)]
    parts += filter(None, [_bold(caution(results))])
    parts.append(model.introduction)
    for section in _SECTIONS:
        parts += section(model)
    return "\n\n".join(parts) + "\n"


def _bold(sentence: str) -> str:
    return f"**{text(sentence)}**" if sentence else ""


def counts_sentence(results: SessionResults) -> str:
    """Return the counts: measured, aliases, failed, skipped by status, structure cases."""
    statuses: Counter[str] = Counter()
    for status, _, count in results.skip_counts():
        statuses[status] += count
    why = ", ".join(f"{status} {count}" for status, count in statuses.items())
    counts = results.counts
    parts = [
        f"{counts.measured} measured",
        counted(counts.alias, "alias"),
        f"{counts.failed} failed",
        f"{counts.skipped} skipped" + (f" ({why})" if why else ""),
        counted(counts.structure, "structure case"),
    ]
    return ", ".join([*parts, *_rare_counts(counts)])


def _rare_counts(counts: OutcomeCounts) -> Iterator[str]:
    if counts.schemes:
        yield f"{counted(counts.schemes, 'scheme')} derived"
    for count, what in (
        (counts.kept, "kept from an earlier run"),
        (counts.gated, "stopped by the gate"),
        (counts.lost, "lost"),
    ):
        if count:
            yield f"{count} {what}"


def last_run_sentences(results: SessionResults) -> tuple[str, ...]:
    """Return one sentence on the last run into the folder, if it is known."""
    if results.last_run is None:
        return ()
    rest = (
        "every outcome here is from it."
        if results.is_from_one_run
        else "all other outcomes here are from earlier runs."
    )
    return (f"Last run: {_run(results.last_run)}{_when(results.last_run)}; {rest}",)


def _when(run: LastRun) -> str:
    if run.started is None:
        return ""
    took = "" if run.seconds is None else f", took {shown_duration(run.seconds)}"
    return f", started {shown_time(run.started)}{took}"


def _run(run: LastRun) -> str:
    counts = run.counts
    common = (
        (counts.measured, f"{counts.measured} measured"),
        (counts.alias, counted(counts.alias, "alias")),
        (counts.failed, f"{counts.failed} failed"),
        (counts.skipped, f"{counts.skipped} skipped"),
        (counts.structure, counted(counts.structure, "structure case")),
    )
    parts = [what for count, what in common if count]
    shard = "" if run.shard is None else f"shard {run.shard}, "
    return shard + (", ".join([*parts, *_rare_counts(counts)]) or "no case")


def run_of(results: SessionResults, case_id: str) -> str:
    """Return whether the outcome of a case is from the ``last`` run or an ``earlier`` one."""
    last = results.last_run
    return "last" if last is None or case_id in last.cases else "earlier"


def _failed(model: ReportModel) -> list[str]:
    results = model.results
    rows = [(line.case_id, text(problem_of(results, line))) for line in results.failures]
    rows += [(case_id, text(why)) for case_id, why in results.gated.items()]
    rows += [(case_id, f"lost: {LOST_MEANS}") for case_id in results.lost]
    lines = [(code(case_id), *_run_cell(results, case_id), problem) for case_id, problem in rows]
    lines += [
        ("not written", *_run_cell(results, ""), text(error)) for error in results.write_errors
    ]
    if not lines:
        return []
    return ["## Failed", table(("case", *_run_header(results), "problem"), lines)]


def problem_of(results: SessionResults, failure: FailedCase) -> str:
    """Return what was wrong, and whether the case has scores from before it failed."""
    if failure.case_id in results.errors and failure.case_id in results.cases:
        return f"{failure.problem} (the scores shown were measured before it failed)"
    return failure.problem


def _run_header(results: SessionResults) -> tuple[str, ...]:
    """Return the header of the column that marks the last run, if there was more than one."""
    return () if results.is_from_one_run else ("run",)


def _run_cell(results: SessionResults, case_id: str) -> tuple[str, ...]:
    return () if results.is_from_one_run else (run_of(results, case_id),)


def _left_out(model: ReportModel) -> list[str]:
    reasons = model.results.left_out
    if not reasons:
        return []
    count = f"{counted(len(reasons), 'file')} not used:"
    return ["## Left out", count, "\n".join(f"- {text(reason)}" for reason in reasons)]


def _grids(model: ReportModel) -> list[str]:
    """Show the pictures; every number in them is in the tables too."""
    pictures = [
        f"![Total score of every quant pair under every granularity, {text(shown.view.model)}, "
        f"{text(shown.view.size)}, {text(shown.view.method)}]({grid_file(shown.view)})"
        for shown in model.views
        if shown.is_measured
    ]
    return ["## Grid", *pictures] if pictures else []


def _stability(model: ReportModel) -> list[str]:
    """Show per two sizes how similar their rankings are, and on which captions."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for point in model.stability:
        key = (point.model, point.method, point.sizes, point.captions)
        found.setdefault(key, []).append(point.spearman)
    if not found:
        return []
    rows = [
        (
            *(code(model), text(method), text(sizes), text(captions), len(values)),
            *map(correlation, _spread(values)),
        )
        for (model, method, sizes, captions), values in found.items()
    ]
    headers = ("model", "method", "sizes", "captions", "cases", "lowest", "median", "highest")
    return [
        "## Size stability",
        f"{STABILITY_MEANS} The page has it per case.",
        table(headers, rows, right="    rrrr"),
    ]


def _captions(model: ReportModel) -> list[str]:
    """Answer how many captions each model needs."""
    sentences = "\n".join(f"- {text(need.sentence)}" for need in model.caption_needs)
    return ["## How many captions", sentences] if sentences else []


def _checks(model: ReportModel) -> list[str]:
    """Answer whether the scores of each model hold, where that was measured."""
    sentences = "\n".join(f"- {text(check.sentence)}" for check in model.checks)
    return ["## Does the score hold?", CHECK_MEANS, sentences] if sentences else []


def _schemes(model: ReportModel) -> list[str]:
    count, unfinished = len(model.results.schemes), model.results.unfinished_schemes
    parts = ["## Schemes"] if count or unfinished else []
    if count:
        parts.append(f"[{count} derived]({SCHEMES_MARKDOWN}). {text(model.agreement)}")
        parts.append(schemes_table(model.results.schemes))
    if unfinished:
        rows = [(code(case_id), text(status), text(why)) for case_id, status, why in unfinished]
        parts.append(table(("not derived", "status", "reason"), rows))
    return parts


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), median(values), max(values)


def _origin(model: ReportModel) -> list[str]:
    rows = [(text(label), ", ".join(map(text, values))) for label, values in model.origin]
    if model.results.command is not None:
        rows.append(("command", code(model.results.command)))
    return ["## Where it came from", table(("", ""), rows)] if rows else []


def _timing(model: ReportModel) -> list[str]:
    timing = () if model.results.last_run is None else model.results.last_run.timing
    if not timing:
        return []
    rows = timing_rows(timing)
    shown = table(timing_headers(timing), rows, right=" " + "r" * len(timing))
    return ["## Where the time went", shown, TIMING_MEANS]


def _sensitive(model: ReportModel) -> list[str]:
    if not model.sensitive:
        return []
    parts = ["## Most sensitive groups", f"{SHARES_MEAN} {GROUPS_MEAN}"]
    for ranking, title in zip(model.sensitive, titles(model.sensitive), strict=True):
        parts += [f"### {text(title)}"] if title else []
        parts += [ALIGNED_MEANS] if ranking.is_aligned else []
        rows = [
            (place, code(group), percent(share))
            for place, (group, share) in enumerate(ranking.groups, start=1)
        ]
        parts.append(table(("rank", "group", "mean share"), rows, right="r r"))
    return parts


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


def _measured(model: ReportModel) -> list[str]:
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
            *_run_cell(results, case.case_id),
        )
        for case, name, cell in zip(measured, names, cells, strict=True)
    ]
    return [
        "## Cases, least damage first",
        table(
            (*apart, *_case_headers(has_kl, is_mixture), *header, *_run_header(results)),
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


def _aliases(model: ReportModel) -> list[str]:
    aliases = model.results.by_status("alias")
    if not aliases:
        return []
    rows = [(code(line.case_id), code(line.alias_of)) for line in aliases]
    return [
        "## Aliases",
        "The same effective config under another name: measured once, same scores.",
        table(("case", "measured as"), rows),
    ]


def _skipped(model: ReportModel) -> list[str]:
    if not model.results.skips:
        return []
    rows = [(text(s), text(reason), count) for s, reason, count in model.results.skip_counts()]
    return ["## Skipped", table(("status", "reason", "cases"), rows, right="  r")]


def _matrix(model: ReportModel) -> list[str]:
    checks = model.structures
    if not checks:
        return []
    pairs = dict.fromkeys(check.pair for check in checks)
    granularities = dict.fromkeys(check.granularity for check in checks)
    statuses = {(check.pair, check.granularity): text(check.status) for check in checks}
    rows = [
        [code(pair), *(statuses.get((pair, granularity), "") for granularity in granularities)]
        for pair in pairs
    ]
    notes = dict.fromkeys(
        f"- {code(check.granularity)}: {text(note)}" for check in checks for note in check.notes
    )
    matrix = table(["pair", *map(code, granularities)], rows)
    return ["## What can run", matrix, *(["\n".join(notes)] if notes else [])]


_SECTIONS = (
    _failed,
    _left_out,
    _sensitive,
    _grids,
    _measured,
    _checks,
    _captions,
    _stability,
    _schemes,
    _aliases,
    _skipped,
    _matrix,
    _origin,
    _timing,
)
