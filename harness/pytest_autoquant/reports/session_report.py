"""The session's overview: what ran, what was skipped and why, which groups hurt most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.manifests.case_result import UNKNOWN, CaseResult
from pytest_autoquant.manifests.session_summary import (
    GroupShare,
    OutcomeCounts,
    SessionSummary,
    SummaryCase,
    dump_summary,
)
from pytest_autoquant.reports.case_report import report_links
from pytest_autoquant.reports.charts.grid import views
from pytest_autoquant.reports.charts.pareto import frontier
from pytest_autoquant.reports.charts.pictures import grid_file, pictured
from pytest_autoquant.reports.charts.size_stability import stability
from pytest_autoquant.reports.markdown import (
    GROUPS_MEAN,
    SCORE_MEANS,
    bits,
    code,
    number,
    percent,
    table,
    text,
)
from pytest_autoquant.reports.scheme_report import SCHEMES_MARKDOWN, agreement_sentence
from pytest_autoquant.reports.session_results import SessionResults, most_sensitive_groups, origin
from pytest_autoquant.text import one_line

MOST_LOST = 5
SUMMARY_MARKDOWN = "summary.md"


def session_summary(results: SessionResults) -> SessionSummary:
    """Return the overview as the record that ``summary.json`` holds."""
    return SessionSummary(
        counts=OutcomeCounts(
            measured=len(results.by_status("measured")),
            alias=len(results.by_status("alias")),
            failed=len(results.failures),
            skipped=len(results.skips),
            structure=len(results.structures),
            kept=len(results.kept),
            gated=len(results.gated),
            lost=len(results.lost),
        ),
        shard=results.shard,
        command=results.command,
        cases=tuple(map(_summary_case, results.cases.values())),
        skipped=tuple(results.skips.values()),
        errors=tuple(results.errors.values()),
        gated=results.gated,
        reruns=results.reruns,
        kept=tuple(sorted(results.kept)),
        lost=results.lost,
        structure=tuple(results.structures.values()),
        most_sensitive_groups=tuple(
            GroupShare(group=group, mean_share=share)
            for group, share in most_sensitive_groups(results.cases.values())
        ),
        left_out=tuple(results.left_out),
        write_errors=tuple(results.write_errors),
    )


def summary_json(results: SessionResults) -> str:
    """Return the overview as JSON."""
    return dump_summary(session_summary(results))


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
        total_score=case.total_score,
        top_group=case.top_group,
        selected_groups=case.selected_groups,
        manifest=case.manifest,
        num_groups=len(case.groups),
        selection_bits=case.selection.bits,
        is_satisfied=case.selection.is_satisfied,
    )


def summary_markdown(results: SessionResults) -> str:
    """Return the overview as Markdown, fit for a CI job summary."""
    parts = ["# Quantization sensitivity", text(counts_sentence(results)), SCORE_MEANS]
    parts += _failed(results)
    parts += _left_out(results)
    parts += _sensitive(results)
    parts += _grids(results)
    parts += _measured(results)
    parts += _stability(results)
    parts += _schemes(results)
    parts += _aliases(results.by_status("alias"))
    parts += _skipped(results)
    parts += _matrix(results)
    parts += _origin(results)
    return "\n\n".join(parts) + "\n"


def counts_sentence(results: SessionResults) -> str:
    """Return the counts: measured, aliases, failed, skipped by status, structure cases."""
    statuses: dict[str, int] = {}
    for status, _, count in results.skip_counts():
        statuses[status] = statuses.get(status, 0) + count
    why = ", ".join(f"{status} {count}" for status, count in statuses.items())
    parts = [
        f"{len(results.by_status('measured'))} measured",
        f"{len(results.by_status('alias'))} aliases",
        f"{len(results.failures)} failed",
        f"{len(results.skips)} skipped" + (f" ({why})" if why else ""),
        f"{len(results.structures)} structure cases",
    ]
    for count, what in (
        (len(results.schemes), "schemes derived"),
        (len(results.kept), "kept from an earlier run"),
        (len(results.gated), "stopped by the gate"),
        (len(results.lost), "lost"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return ", ".join(parts)


def terminal_lines(results: SessionResults) -> list[str]:
    """Return the summary that ends a pytest run."""
    lines = [counts_sentence(results)]
    for status, reason, count in results.skip_counts():
        lines.append(f"  skipped {count:4d}  {status}: {reason}")
    for line in results.by_status("alias")[:5]:
        lines.append(f"  alias  {line.case_id} = {line.alias_of}")
    more = len(results.by_status("alias")) - 5
    if more > 0:
        lines.append(f"  alias  and {more} more, listed in {SUMMARY_MARKDOWN}")
    lines += [f"  failed {line.case_id}: {line.problem}" for line in results.failures]
    lines += [f"  gate   {case_id}" for case_id in results.gated]
    lines += [
        f"  lost   {case_id}: was to run and sent no outcome"
        for case_id in results.lost[:MOST_LOST]
    ]
    if len(results.lost) > MOST_LOST:
        more = len(results.lost) - MOST_LOST
        lines.append(f"  lost   and {more} more, listed in {SUMMARY_MARKDOWN}")
    lines += [
        f"  scheme {found.scheme.name}: {found.allocation.effective_bits:.4g} bits per weight, KL "
        f"{number(found.measured.kl)} nats per token"
        for found in results.schemes.values()
    ]
    lines += _rerun_lines(results)
    ranked = most_sensitive_groups(results.cases.values())
    if ranked:
        lines.append("most sensitive groups (q_proj is q, k and v; gate_proj is gate and up), by")
        lines.append("mean share of a case's total score:")
    for place, (group, share) in enumerate(ranked, start=1):
        lines.append(f"  {place:2d}. {share:6.1%}  {group}")
    lines += [f"NOT WRITTEN: {error}" for error in results.write_errors]
    return [one_line(line) for line in lines]


def _rerun_lines(results: SessionResults) -> list[str]:
    reasons = Counter(results.reruns.values())
    return [f"  re-run {count:4d}  changed: {reason}" for reason, count in reasons.most_common()]


def _failed(results: SessionResults) -> list[str]:
    rows = [(code(line.case_id), text(line.problem)) for line in results.failures]
    rows += [(code(case_id), text(why)) for case_id, why in results.gated.items()]
    rows += [(code(case_id), "lost: was to run and sent no outcome") for case_id in results.lost]
    rows += [("not written", text(error)) for error in results.write_errors]
    if not rows:
        return []
    return ["## Failed", table(("case", "problem"), rows)]


def _left_out(results: SessionResults) -> list[str]:
    if not results.left_out:
        return []
    return ["## Left out", "\n".join(f"- {text(reason)}" for reason in results.left_out)]


def _grids(results: SessionResults) -> list[str]:
    """Show the pictures; every number in them stands in the tables below."""
    pictures = [
        f"![Total score of every quant pair under every granularity, {text(view.model)}, "
        f"{text(view.size)}]({grid_file(view)})"
        for view, _ in pictured(results)
    ]
    return ["## Grid", *pictures] if pictures else []


def _stability(results: SessionResults) -> list[str]:
    """Say per pair of sizes how alike they rank the groups, over all cases."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for point in stability(results):
        found.setdefault((point.model, point.method, point.sizes), []).append(point.spearman)
    if not found:
        return []
    rows = [
        (code(model), text(method), text(sizes), len(values), *map(_correlation, _spread(values)))
        for (model, method, sizes), values in found.items()
    ]
    headers = ("model", "method", "sizes", "cases", "lowest", "median", "highest")
    return [
        "## Size stability",
        "Spearman rank correlation of the layer groups between two calibration sizes; 1 is the "
        "same order. The page has it per case.",
        table(headers, rows, right="   rrrr"),
    ]


def _schemes(results: SessionResults) -> list[str]:
    if not results.schemes:
        return []
    sentence = text(agreement_sentence(results.schemes))
    return ["## Schemes", f"[{len(results.schemes)} derived]({SCHEMES_MARKDOWN}). {sentence}"]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), median(values), max(values)


def _correlation(value: float) -> str:
    return f"{value:.4f}"


def _origin(results: SessionResults) -> list[str]:
    rows = [(text(label), ", ".join(map(text, values))) for label, values in origin(results)]
    if results.command is not None:
        rows.append(("command", code(results.command)))
    return ["## Where it came from", table(("", ""), rows)] if rows else []


def _sensitive(results: SessionResults) -> list[str]:
    ranked = most_sensitive_groups(results.cases.values())
    if not ranked:
        return []
    rows = [
        (place, code(group), percent(share)) for place, (group, share) in enumerate(ranked, start=1)
    ]
    return [
        "## Most sensitive groups",
        f"Mean share of a case's total score, every measured case counted once. {GROUPS_MEAN}",
        table(("rank", "group", "mean share"), rows, right="r r"),
    ]


def _measured(results: SessionResults) -> list[str]:
    measured = results.by_status("measured")
    if not measured:
        return []
    best = {p.case for view in views(results) for p in frontier(results, view) if p.best}
    rows = [
        (
            _linked(line) + (" (exp.)" if line.experimental else ""),
            code(line.granularity),
            text(line.size),
            bits(line.effective_bits),
            number(line.total_score) + (" \\*" if line.case_id in best else ""),
            code(line.top_group),
            quantized(line),
            bits(line.selection.bits),
        )
        for line in sorted(measured, key=_by_damage)
    ]
    headers = (
        "pair",
        "granularity",
        "size",
        "bits per weight",
        "total score",
        "most sensitive group",
        "quantized under budget",
        "bits under budget",
    )
    return [
        "## Cases, least damage first",
        table(headers, rows, right="   rr rr"),
        "\\* on the frontier: no other case of the size has less of score or bits, and not more of "
        "the other.",
    ]


def _linked(case: CaseResult) -> str:
    address = next(iter(report_links(case).values()))
    return f"[{code(case.pair)}]({address})"


def quantized(case: CaseResult) -> str:
    """Say how many groups the bit budget keeps quantized."""
    if case.is_old:
        return UNKNOWN
    if not case.selection.is_satisfied:
        return "infeasible"
    return f"{case.selected_groups} of {len(case.groups)}"


def _by_damage(line: CaseResult) -> tuple[int, float, str]:
    order = list(SIZES).index(line.size) if line.size in SIZES else len(SIZES)
    return order, line.total_score or 0.0, line.case_id


def _aliases(aliases: Sequence[CaseResult]) -> list[str]:
    if not aliases:
        return []
    rows = [(code(line.case_id), code(line.alias_of)) for line in aliases]
    return [
        "## Aliases",
        "The same effective config under another name: measured once, same scores.",
        table(("case", "measured as"), rows),
    ]


def _skipped(results: SessionResults) -> list[str]:
    if not results.skips:
        return []
    rows = [(text(s), text(reason), count) for s, reason, count in results.skip_counts()]
    return ["## Skipped", table(("status", "reason", "cases"), rows, right="  r")]


def _matrix(results: SessionResults) -> list[str]:
    if not results.structures:
        return []
    granularities = list(dict.fromkeys(key[1] for key in results.structures))
    pairs = list(dict.fromkeys(key[0] for key in results.structures))
    rows = [
        [code(pair)]
        + [
            text(results.structures[pair, name].status)
            if (pair, name) in results.structures
            else ""
            for name in granularities
        ]
        for pair in pairs
    ]
    return ["## What can run", table(["pair", *map(code, granularities)], rows)]
