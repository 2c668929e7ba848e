"""The overview of a session or a folder as Markdown: ``summary.md``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pytest_autoquant.reports.charts.grid import grid_file
from pytest_autoquant.reports.markdown.check_report import CHECK_MEANS
from pytest_autoquant.reports.markdown.elements import (
    ALIGNED_MEANS,
    GROUPS_MEAN,
    LOST_MEANS,
    SHARES_MEAN,
    STABILITY_MEANS,
    code,
    correlation,
    percent,
    table,
    text,
)
from pytest_autoquant.reports.markdown.scheme.report import SCHEMES_MARKDOWN, schemes_table
from pytest_autoquant.reports.markdown.session.case_table import (
    measured_cases,
    run_cell,
    run_header,
)
from pytest_autoquant.reports.markdown.session.sentences import (
    counts_sentence,
    last_run_sentences,
    problem_of,
)
from pytest_autoquant.reports.markdown.session.timing import (
    TIMING_MEANS,
    timing_headers,
    timing_rows,
)
from pytest_autoquant.reports.report_model import ReportModel
from pytest_autoquant.reports.session_results import caution, titles
from pytest_autoquant.text import counted

SUMMARY_MARKDOWN = "summary.md"


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


def _failed(model: ReportModel) -> list[str]:
    results = model.results
    rows = [(line.case_id, text(problem_of(results, line))) for line in results.failures]
    rows += [(case_id, text(why)) for case_id, why in results.gated.items()]
    rows += [(case_id, f"lost: {LOST_MEANS}") for case_id in results.lost]
    lines = [(code(case_id), *run_cell(results, case_id), problem) for case_id, problem in rows]
    lines += [
        ("not written", *run_cell(results, ""), text(error)) for error in results.write_errors
    ]
    if not lines:
        return []
    return ["## Failed", table(("case", *run_header(results), "problem"), lines)]


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
    measured_cases,
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
