"""The layer report of one case: its groups from most to least sensitive."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from pytest_autoquant.allocation.scored_group import rounded_up
from pytest_autoquant.manifests.case_result import COUNTED, CaseResult, ErrorBar, finite
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
from pytest_autoquant.reports.markdown.check_report import check_section, checked_groups
from pytest_autoquant.reports.markdown.elements import (
    ERROR_BARS_MEAN,
    GROUPS_MEAN,
    SUM_MEANS,
    bits,
    both_bits,
    code,
    number,
    numbers_apart,
    percent,
    random_weights_caution,
    scores_mean,
    table,
    text,
    with_error,
)
from pytest_autoquant.reports.markdown.selection_tables import (
    SELECTION_MEANS,
    budget_rows,
    kept_rows,
    score_per_megabit,
)
from pytest_autoquant.reports.markdown.whole_model_report import whole_sentence
from pytest_autoquant.text import digits_apart

LAYERS_MARKDOWN = "layer-sensitivity-report.md"
LAYERS_JSON = "layer-sensitivity-report.json"
LAYERS_PICTURE = "layer-map.svg"


def link(path: PurePosixPath) -> str:
    """Return the percent-encoded address of a file below the report root."""
    return quote(os.fsencode(path))


def report_links(case: CaseResult) -> dict[str, str]:
    """Return the addresses of a case's files by kind, the one to read first.

    A manifest from before the harness has no layer report.
    """
    path = PurePosixPath(case.manifest)
    reports = {} if case.is_old else {"layer report": link(path.with_name(LAYERS_MARKDOWN))}
    return {**reports, "manifest": link(path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One group in the report. A field is None where an old manifest lacks it.

    Attributes:
        score: per scored token.
        share: of the case's total score; ``cumulative_share`` includes the groups ranked before.
        weights: number of stored weights.
        selected: whether the bit budget keeps the group quantized.
        score_per_megabit: score per million bits that quantizing the group saves.
        standard_error: of the score over captions; ``rank_interval`` are the ranks that other
            captions may give.
        kl: measured KL divergence in nats per token, with its error and rank, where it was checked.
    """

    rank: int
    group: str
    modules: tuple[str, ...]
    score: float | None
    share: float | None
    cumulative_share: float | None
    weights: int | None
    selected: bool | None
    score_per_megabit: float | None
    standard_error: float | None = None
    rank_interval: tuple[int, int] | None = None
    top_ten_probability: float | None = None
    kl: float | None = None
    kl_standard_error: float | None = None
    kl_rank: int | None = None


def layer_rows(case: CaseResult) -> tuple[LayerRow, ...]:
    """Return the groups of a case, most sensitive first."""
    total = case.total_score
    rows: list[LayerRow] = []
    checked = {each.group.name: each for each in checked_groups(case)}
    running = 0.0
    for group in case.groups:
        share = group.score / total if group.score is not None and total else None
        running += share or 0.0
        error = group.error
        rows.append(
            LayerRow(
                rank=group.rank,
                group=group.name,
                modules=group.modules,
                score=group.score,
                share=finite(share),
                cumulative_share=finite(running) if total else None,
                weights=group.weights,
                selected=group.selected,
                score_per_megabit=finite(score_per_megabit(group)),
                standard_error=None if error is None else error.standard_error,
                rank_interval=None if error is None else error.rank_interval,
                top_ten_probability=None if error is None else error.top_ten_probability,
                kl=None if group.divergence is None else group.divergence.kl,
                kl_standard_error=(
                    None if group.divergence is None else group.divergence.standard_error
                ),
                kl_rank=checked[group.name].kl_rank if group.name in checked else None,
            )
        )
    return tuple(rows)


def layer_report_json(manifest: Manifest, case: CaseResult) -> bytes:
    """Return the report as JSON: the case, its selection and one object per group."""
    from pydantic_core import to_json

    report = {
        "schema_version": manifest.schema_version,
        "case": case.case_id,
        "status": case.status,
        "alias_of": case.alias_of,
        "weights": case.source.weights,
        "measured_at": case.source.measured_at,
        "seconds": case.source.seconds,
        "format": case.format_name,
        "effective_bits": case.effective_bits,
        "active_bits": case.active_bits,
        "num_scored_tokens": manifest.dataset.num_scored_tokens,
        "score_check": _check(case),
        "whole_model": _whole_model(case),
        "autoquant_state": manifest.autoquant_state,
        "budgets": budget_rows(case),
        "kept": kept_rows(case),
        "groups": layer_rows(case),
    }
    return to_json(report, indent=2) + b"\n"


def _check(case: CaseResult) -> dict[str, object] | None:
    """Return what the check of the scores found; ``groups`` of the report has its divergences."""
    check = case.score_check
    if check is None:
        return None
    names = ("captions", "tokens", "spearman", "top_ten", "seconds")
    return {name: getattr(check, name) for name in names}


def _whole_model(case: CaseResult) -> dict[str, object] | None:
    """Return what was measured with every group quantized."""
    whole = case.whole
    if whole is None:
        return None
    names = ("captions", "tokens", "kl", "standard_error", "interaction_ratio", "score_per_kl")
    return {name: getattr(whole, name) for name in (*names, "ratio_standard_error")}


def layer_report_markdown(manifest: Manifest, case: CaseResult) -> str:
    """Return the report as Markdown; ``case`` is made from ``manifest``.

    The picture of the layer map is expected in the same folder.
    """
    parts = [
        f"# Layer sensitivity: {code(case.pair)}, {code(case.granularity)}, {text(case.size)}",
        *filter(None, [text(_caution(case))]),
        _facts(manifest, case),
        scores_mean({manifest.case.method}),
        *_whole(case),
        *_notes(manifest),
        "## Selection",
        text(selection_sentence(case)),
        *_selection_tables(case),
        *check_section(case),
        "## Layer map",
        f"![Score of every layer group, by decoder layer and projection: {_alternative_text(case)}]"
        f"({LAYERS_PICTURE})",
        "## Layer groups, most sensitive first",
        GROUPS_MEAN,
        *([ERROR_BARS_MEAN] if _has_error_bars(case) else []),
        _groups(case),
    ]
    return "\n\n".join(parts) + "\n"


def _alternative_text(case: CaseResult) -> str:
    """Name the three most sensitive groups, for readers who do not see the picture."""
    shares = case.shares
    named = [f"{text(group.name)} {percent(shares.get(group.name))}" for group in case.groups[:3]]
    return "highest are " + ", ".join(named)


def selection_sentence(case: CaseResult) -> str:
    """Return one sentence on what the bit budget keeps quantized; empty if that is unknown."""
    chosen = case.selection
    if chosen.budget is None or chosen.bits is None or chosen.minimum_bits is None:
        return ""
    counted = COUNTED[chosen.cost]
    if not chosen.is_satisfied:
        digits = digits_apart(chosen.budget, chosen.minimum_bits, 4, "g")
        count, every = case.selected_groups, len(case.groups)
        which = "every group" if count == every else f"{count} of {every} groups"
        return (
            f"The budget of {chosen.budget:.{digits}g} bits per {counted} cannot be met: the "
            f"smallest reachable is {rounded_up(chosen.minimum_bits)}, with {which} quantized."
        )
    digits = digits_apart(chosen.budget, chosen.bits, 4, "g")
    active = "" if chosen.active_bits is None else f" ({bits(chosen.active_bits)} active)"
    score, total = numbers_apart(chosen.score, case.total_score)
    return (
        f"Within {chosen.budget:.{digits}g} bits per {counted}, {case.selected_groups} of "
        f"{len(case.groups)} groups stay quantized: {chosen.bits:.{digits}g} bits{active}, score "
        f"{score} of {total} with all of them."
    )


def _caution(case: CaseResult) -> str:
    return random_weights_caution([case.model] if case.has_random_weights else [])


def _facts(manifest: Manifest, result: CaseResult) -> str:
    case, data, env = manifest.case, manifest.dataset, manifest.environment
    experimental = ", experimental" if case.experimental else ""
    quantization = manifest.quantization
    stored = both_bits(quantization.effective_bits, quantization.active_bits)
    rows = [
        ("model", f"{code(manifest.model.id)} ({text(manifest.model.weights)} weights)"),
        ("format", f"{code(manifest.quantization.base_format_name)}{experimental}"),
        ("weights stored in", f"{stored} bits, scales included"),
        ("status", text(case.status) + (f" of {code(case.alias_of)}" if case.alias_of else "")),
        ("method", f"{text(case.method)}, engine {text(manifest.run_config.engine)}"),
        (
            "captions",
            f"{data.num_calib_samples} calibrated, {data.num_score_samples} scored "
            f"({data.num_scored_tokens} tokens) of {code(data.name)}",
        ),
        ("measured", text(result.measured)),
        ("device", f"{text(env.device_name)}, {text(manifest.run_config.dtype)}"),
        (
            "versions",
            text(f"modelopt {env.modelopt}, torch {env.torch}, transformers {env.transformers}"),
        ),
    ]
    return table(("", ""), rows)


def _whole(case: CaseResult) -> list[str]:
    sentence = text(whole_sentence(case))
    meaning = [SUM_MEANS] if case.whole is not None else []
    return [sentence, *meaning] if sentence else []


def _notes(manifest: Manifest) -> list[str]:
    lines = [f"- **Failed:** {text(problem)}" for problem in manifest.case.problems]
    lines += [f"- Note: {text(note)}" for note in manifest.case.notes]
    return ["\n".join(lines)] if lines else []


def _selection_tables(case: CaseResult) -> list[str]:
    budgets, kept = budget_rows(case), kept_rows(case)
    if not budgets:
        return []
    return [
        SELECTION_MEANS,
        "### By budget",
        table(
            ("budget", "groups quantized", "bits stored", "score", "share of the whole"),
            [
                (f"{r.budget:.6g}", r.quantized, bits(r.bits), number(r.score), percent(r.share))
                for r in budgets
            ],
            right="rrrrr",
        ),
        "### With the most sensitive groups in 16 bits",
        table(
            ("kept in 16 bits", "bits stored", "score left", "share of the whole"),
            [(r.kept, bits(r.bits), number(r.score), percent(r.share)) for r in kept],
            right="rrrr",
        ),
    ]


def _groups(case: CaseResult) -> str:
    rows = [
        (
            row.rank,
            code(row.group),
            len(row.modules),
            with_error(row.score, row.standard_error),
            percent(row.share),
            percent(row.cumulative_share),
            f"{row.weights:,}",
            *(() if case.active_bits is None else (f"{group.active_weights or row.weights:,}",)),
            number(row.score_per_megabit),
            "quantized" if row.selected else "16-bit",
            *_noise_cells(group.error),
        )
        for row, group in zip(layer_rows(case), case.groups, strict=True)
    ]
    has_error_bars, extra = _has_error_bars(case), "" if case.active_bits is None else "r"
    headers = (
        *("rank", "group", "linears", "score", "share", "running", "weights"),
        *(() if case.active_bits is None else ("active per token",)),
        *("score per Mbit saved", "selection"),
        *(("ranks at 95%", "in the top ten") if has_error_bars else ()),
    )
    return table(headers, rows, right=f"r rrrrr{extra}r " + "rr" * has_error_bars)


def _has_error_bars(case: CaseResult) -> bool:
    return any(group.error is not None for group in case.groups)


def _noise_cells(error: ErrorBar | None) -> tuple[str, ...]:
    return () if error is None else (error.ranks, f"{error.top_ten_probability:.0%}")
