"""The lines that end a pytest run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_autoquant.allocation.scored_group import rounded_up
from pytest_autoquant.manifests.records.scheme_manifest import ExportRecord, SchemeManifest
from pytest_autoquant.reports.markdown.check_report import check_summaries
from pytest_autoquant.reports.markdown.elements import LOST_MEANS, number
from pytest_autoquant.reports.markdown.scheme.damage import uniform_sentence
from pytest_autoquant.reports.markdown.scheme.report import SCHEMES_MARKDOWN
from pytest_autoquant.reports.markdown.session.report import SUMMARY_MARKDOWN
from pytest_autoquant.reports.markdown.session.sentences import counts_sentence
from pytest_autoquant.reports.markdown.session.timing import timing_line
from pytest_autoquant.reports.session_results import (
    SessionResults,
    caution,
    most_sensitive_groups,
    titles,
)
from pytest_autoquant.text import counted, one_line

#: Aliases and lost cases that the terminal lists by name; more are counted.
_MOST_NAMES = 5


def terminal_lines(results: SessionResults) -> list[str]:
    """Return the summary that ends a pytest run; ``results`` are those of the session."""
    lines = [counts_sentence(results), *filter(None, [caution(results)])]
    lines += [
        f"  skipped {count:4d}  {status}: {reason}"
        for status, reason, count in results.skip_counts()
    ]
    aliases = [f"{line.case_id} = {line.alias_of}" for line in results.by_status("alias")]
    lines += _first("alias", aliases)
    lines += [f"  failed {line.case_id}: {line.problem}" for line in results.failures]
    lines += [f"  gate   {case_id}" for case_id in results.gated]
    lines += _first("lost ", [f"{case_id}: {LOST_MEANS}" for case_id in results.lost])
    for found in results.schemes.values():
        lines += _scheme_lines(found)
    lines += _rerun_lines(results)
    lines += _budget_lines(results)
    lines += [f"  check  {check.headline}" for check in check_summaries(results.cases.values())]
    lines += _group_lines(results)
    lines += [f"time: {timing_line(results.timing)}"] if results.timing else []
    lines += [f"left out: {reason}" for reason in results.left_out]
    lines += [f"NOT WRITTEN: {error}" for error in results.write_errors]
    return [one_line(line) for line in lines]


def _scheme_lines(found: SchemeManifest) -> Iterator[str]:
    """Yield a scheme's numbers, and what an option left out of it or made of it."""
    yield (
        f"  scheme {found.scheme.name}: {found.allocation.effective_bits:.4g} bits per weight, KL "
        f"{number(found.measured.kl)} nats per token"
    )
    if found.uniform is not None and found.uniform.verdict == "worse":
        yield f"    {uniform_sentence(found)}"
    for reason in found.scheme.left_out.values():
        yield f"    --aq-target {found.scheme.target} left out: {reason}"
    if found.export is not None:
        yield from _export_lines(found.export, found.scheme.target)


def _export_lines(export: ExportRecord, target: str | None) -> Iterator[str]:
    if export.violations:
        count = counted(len(export.violations), "violation")
        rules = ", ".join(dict.fromkeys(each.rule for each in export.violations))
        advice = "" if target else "; --aq-target vllm leaves out what vLLM cannot load"
        yield (
            f"    --aq-export wrote a checkpoint with {count} of vLLM's rules ({rules}), listed in "
            f"{SCHEMES_MARKDOWN}{advice}"
        )
    if export.warnings:
        count = counted(len(export.warnings), "warning")
        yield f"    --aq-export: {count} about vLLM, listed in {SCHEMES_MARKDOWN}"
    if export.not_checked is not None:
        yield f"    --aq-export: not checked for vLLM: {export.not_checked}"


def _first(kind: str, entries: Sequence[str]) -> list[str]:
    """Return the first few entries, one line each, and the number of the others."""
    lines = [f"  {kind}  {entry}" for entry in entries[:_MOST_NAMES]]
    if len(entries) > _MOST_NAMES:
        more = len(entries) - _MOST_NAMES
        lines.append(f"  {kind}  and {more} more, listed in {SUMMARY_MARKDOWN}")
    return lines


def _group_lines(results: SessionResults) -> list[str]:
    ranked = most_sensitive_groups(results.cases.values())
    if not ranked:
        return []
    lines = [
        "most sensitive groups (q_proj is q, k and v; gate_proj is gate and up), by",
        "mean share of a case's total score:",
    ]
    for ranking, title in zip(ranked, titles(ranked), strict=True):
        lines += [f"  {title}:"] if title else []
        lines += [
            f"  {i:2d}. {share:6.1%}  {group}"
            for i, (group, share) in enumerate(ranking.groups, start=1)
        ]
    return lines


def _budget_lines(results: SessionResults) -> Iterator[str]:
    """Yield a line per bit budget that cases cannot reach."""
    needed: dict[float, list[float]] = {}
    for case in results.cases.values():
        chosen = case.selection
        if chosen.is_satisfied is False and chosen.budget and chosen.minimum_bits is not None:
            needed.setdefault(chosen.budget, []).append(chosen.minimum_bits)
    for budget, bits in sorted(needed.items()):
        yield (
            f"  budget {len(bits):4d}  cannot be stored in {budget:.15g} bits per weight "
            f"(--aq-effective-bits); the first of them fits at {rounded_up(min(bits))}"
        )


def _rerun_lines(results: SessionResults) -> list[str]:
    reasons = Counter(results.reruns.values())
    changes = Counter(results.selected_anew.values())
    return [
        *(f"  re-run {count:4d}  changed: {reason}" for reason, count in reasons.most_common()),
        *(f"  kept   {count:4d}  selected anew: {why}" for why, count in changes.most_common()),
    ]
