"""The layer report of one case: its groups from most to least sensitive."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from harness.manifest import GROUP_SUFFIX, Manifest
from harness.report.markdown import (
    GROUPS_MEAN,
    KL_SCORE_MEANS,
    SCORE_MEANS,
    code,
    number,
    percent,
    table,
    text,
)

LAYERS_MARKDOWN = "layer-sensitivity-report.md"
LAYERS_JSON = "layer-sensitivity-report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One group in the report.

    ``share`` is of the case's total score; ``weights`` counts stored weights; ``selected`` says
    that the bit budget keeps the group quantized.
    """

    rank: int
    group: str
    modules: tuple[str, ...]
    score: float | None
    share: float | None
    cumulative_share: float | None
    weights: int
    selected: bool


def layer_rows(manifest: Manifest) -> tuple[LayerRow, ...]:
    """Return the groups of a manifest, most sensitive first."""
    total = manifest.autoquant_state.total_score
    rows: list[LayerRow] = []
    running = 0.0
    for ranked in manifest.sensitivity_ranking:
        group = manifest.layer_sensitivity[ranked.name]
        members = [manifest.layers[name] for name in group.module_names]
        share = ranked.importance / total if ranked.importance is not None and total else None
        running += share or 0.0
        rows.append(
            LayerRow(
                rank=group.rank,
                group=ranked.name.removesuffix(GROUP_SUFFIX),
                modules=group.module_names,
                score=ranked.importance,
                share=_finite(share),
                cumulative_share=_finite(running) if total else None,
                weights=sum(layer.out_features * layer.in_features for layer in members),
                selected=all(layer.selected for layer in members),
            )
        )
    return tuple(rows)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def layer_report_json(manifest: Manifest) -> str:
    """Return the report as JSON: the case, its selection and one object per group."""
    report = {
        "schema_version": manifest.schema_version,
        "case": manifest.case.case_id,
        "status": manifest.case.status,
        "alias_of": manifest.case.alias_of,
        "format": manifest.quantization.base_format_name,
        "effective_bits": manifest.quantization.effective_bits,
        "num_scored_tokens": manifest.dataset.num_scored_tokens,
        "autoquant_state": asdict(manifest.autoquant_state),
        "groups": [asdict(row) for row in layer_rows(manifest)],
    }
    return json.dumps(report, indent=2) + "\n"


def layer_report_markdown(manifest: Manifest) -> str:
    """Return the report as Markdown that reads well in a code review."""
    case = manifest.case
    parts = [
        f"# Layer sensitivity: {code(case.pair)}, {code(case.granularity)}, {text(case.size)}",
        _facts(manifest),
        KL_SCORE_MEANS if case.method == "kl_div" else SCORE_MEANS,
        *_notes(manifest),
        "## Selection",
        _selection(manifest),
        "## Layer groups, most sensitive first",
        GROUPS_MEAN,
        _groups(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def selection_sentence(manifest: Manifest) -> str:
    """Say in one sentence what the bit budget keeps quantized."""
    state = manifest.autoquant_state
    rows = layer_rows(manifest)
    budget = state.constraints.effective_bits
    if not state.is_satisfied:
        return (
            f"The budget of {budget:g} bits per weight cannot be met: the smallest reachable is "
            f"{state.minimum_effective_bits:.4g}, with every group quantized."
        )
    chosen = sum(row.selected for row in rows)
    return (
        f"Within {budget:g} bits per weight, {chosen} of {len(rows)} groups stay quantized: "
        f"{state.effective_bits:.4g} bits, score {number(state.score)} of "
        f"{number(state.total_score)} with all of them."
    )


def _facts(manifest: Manifest) -> str:
    case, data, env = manifest.case, manifest.dataset, manifest.environment
    experimental = ", experimental" if case.experimental else ""
    bits = manifest.quantization.effective_bits
    rows = [
        ("model", f"{code(manifest.model.id)} ({text(manifest.model.weights)} weights)"),
        ("format", f"{code(manifest.quantization.base_format_name)}{experimental}"),
        (
            "weights stored in",
            f"{bits:.4g} bits, block scales included",
        ),
        ("status", text(case.status) + (f" of {code(case.alias_of)}" if case.alias_of else "")),
        ("method", f"{text(case.method)}, engine {text(manifest.run_config.engine)}"),
        (
            "captions",
            f"{data.num_calib_samples} calibrated, {data.num_score_samples} scored "
            f"({data.num_scored_tokens} tokens) of {code(data.name)}",
        ),
        ("device", f"{text(env.device_name)}, {text(manifest.run_config.dtype)}"),
        (
            "versions",
            text(f"modelopt {env.modelopt}, torch {env.torch}, transformers {env.transformers}"),
        ),
    ]
    return table(("", ""), rows)


def _notes(manifest: Manifest) -> list[str]:
    lines = [f"- **Failed:** {text(problem)}" for problem in manifest.case.problems]
    lines += [f"- Note: {text(note)}" for note in manifest.case.notes]
    return ["\n".join(lines)] if lines else []


def _selection(manifest: Manifest) -> str:
    return text(selection_sentence(manifest))


def _groups(manifest: Manifest) -> str:
    rows = [
        (
            row.rank,
            code(row.group),
            len(row.modules),
            number(row.score),
            percent(row.share),
            percent(row.cumulative_share),
            f"{row.weights:,}",
            "quantized" if row.selected else "16-bit",
        )
        for row in layer_rows(manifest)
    ]
    headers = ("rank", "group", "linears", "score", "share", "running", "weights", "selection")
    return table(headers, rows, right="r rrrrr ")
