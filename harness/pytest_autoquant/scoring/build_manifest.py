"""Turn what an engine measured into a manifest."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_autoquant.allocation.knapsack import Selection, select_formats
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS, EffectiveConfig
from pytest_autoquant.grid.case import Case
from pytest_autoquant.manifests.sensitivity_manifest import (
    AutoquantRun,
    AutoquantState,
    CaseRecord,
    Constraints,
    DatasetRecord,
    EnvironmentRecord,
    GranularityRecord,
    GroupSensitivity,
    LayerRecord,
    Manifest,
    MemoryRecord,
    ModelRecord,
    QuantizationRecord,
    RankedGroup,
    RunConfig,
)
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.scoring.engine import GroupScore, Measurement
from pytest_autoquant.scoring.notes import padded_to
from pytest_autoquant.text import counted, now_utc

UNQUANTIZED_FORMAT = f"NONE(effective-bits: {UNQUANTIZED_BITS})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything about one case that its manifest is made of.

    ``linears`` is by module name, in module order; ``alias_of`` names the case that measured;
    ``started`` is the clock (``time.perf_counter``) when the case began.
    """

    case: Case
    config: EffectiveConfig
    measurement: Measurement
    data: CalibrationData
    linears: Mapping[str, Linear]
    alias_of: str | None
    notes: tuple[str, ...]
    model: ModelRecord
    environment: EnvironmentRecord
    memory: MemoryRecord
    run_config: RunConfig
    started: float


def build_manifest(findings: Findings) -> Manifest:
    """Rank the groups, select under the bit budget and put the record together."""
    groups = findings.measurement.groups
    scores = [per_token(group, findings.data) for group in groups]
    weights = [_num_weights(group, findings.linears) for group in groups]
    selection = _selection(scores, weights, findings)
    problems = find_problems(groups, findings.linears)
    ranking = _ranking(scores)
    return Manifest(
        case=_case_record(findings, problems),
        scheme=_scheme(findings),
        model=findings.model,
        dataset=dataset_record(findings.data),
        quantization=_quantization(findings),
        num_quantized_layers=sum(len(group.modules) for group in groups if group.quantized),
        layers=_layers(groups, selection, findings),
        layer_sensitivity={
            group.name: _sensitivity(group, score, weight, rank, findings.config)
            for group, score, weight, rank in zip(
                groups, scores, weights, _ranks(ranking), strict=True
            )
        },
        sensitivity_ranking=tuple(
            RankedGroup(name=groups[i].name, importance=_finite(scores[i])) for i in ranking
        ),
        autoquant_state=_autoquant_state(scores, selection, findings.run_config.effective_bits),
        environment=findings.environment,
        timing=_timing(findings),
        memory=findings.memory,
        run_config=findings.run_config,
        measured_at=now_utc(),
    )


def find_problems(groups: Sequence[GroupScore], linears: Mapping[str, Linear]) -> tuple[str, ...]:
    """Return what makes a measurement invalid: nothing searched, groups without a finite score."""
    problems = []
    if not groups:
        problems.append("nothing was quantized: AutoQuant searched no layer group")
    left_out = sorted(set(linears) - {name for group in groups for name in group.modules})
    if left_out and groups:
        problems.append(f"no score for {counted(len(left_out), 'linear')}: {_some(left_out)}")
    idle = [group.name for group in groups if not group.quantized]
    if idle:
        problems.append(f"quantizers were off in {counted(len(idle), 'group')}: {_some(idle)}")
    broken = [group.name for group in groups if not math.isfinite(group.score)]
    if broken:
        problems.append(
            f"scores are not finite in {counted(len(broken), 'group')}: {_some(broken)}"
        )
    return tuple(problems)


def _timing(findings: Findings) -> dict[str, float]:
    """Return seconds by phase; an alias took none."""
    if findings.alias_of is not None:
        return {}
    return {**findings.measurement.timing, "total": time.perf_counter() - findings.started}


def _case_record(findings: Findings, problems: tuple[str, ...]) -> CaseRecord:
    case, pair = findings.case, findings.case.combination.pair
    status = "failed" if problems else "alias" if findings.alias_of else "measured"
    return CaseRecord(
        case_id=case.case_id,
        pair=pair.name,
        weight=pair.weight,
        activation=pair.activation,
        granularity=case.combination.granularity.name,
        size=case.size,
        method=case.method,  # type: ignore[arg-type]
        experimental=pair.experimental,
        status=status,  # type: ignore[arg-type]
        alias_of=findings.alias_of,
        problems=problems,
        notes=(*findings.config.notes, *findings.notes),
    )


def _scheme(findings: Findings) -> AutoquantRun:
    case, run = findings.case, findings.run_config
    return AutoquantRun(
        name=f"{case.combination.pair.name}_autoquant_lm",
        auto_quantize_bits=run.effective_bits,
        auto_quantize_method=case.method,
        auto_quantize_score_size=run.score_size,
        coverage_mode="lm_only",
        coverage_fraction=1.0,
        quant_formats=(case.combination.pair.format_name,),
    )


def dataset_record(data: CalibrationData) -> DatasetRecord:
    """Return what a manifest says of the captions."""
    return DatasetRecord(
        name=data.captions.name,
        size=data.captions.size,
        sha256=data.sha256,
        num_requested=data.captions.requested,
        num_calib_samples=sum(len(batch.rows) for batch in data.batches),
        num_score_samples=sum(len(batch.rows) for batch in data.scored),
        num_tokens=sum(batch.num_tokens for batch in data.batches),
        num_scored_tokens=data.scored_tokens,
        token_lengths=data.token_lengths,
        batch_size=data.batch_size,
        num_calib_batches=len(data.batches),
        num_score_batches=len(data.scored),
        num_dropped=len(data.dropped),
        scored_captions=_caption_digests(data),
    )


def _caption_digests(data: CalibrationData) -> tuple[str, ...]:
    rows = (row for batch in data.scored for row in batch.rows)
    return tuple(
        sorted(hashlib.sha256(" ".join(map(str, row)).encode()).hexdigest()[:8] for row in rows)
    )


def _quantization(findings: Findings) -> QuantizationRecord:
    config = findings.config
    overrides = {name: _plain(half) for name, half in config.granularity.overrides.items()}
    return QuantizationRecord(
        base_format_name=config.pair.format_name,
        base_is_modelopt_preset=config.pair.is_preset,
        quant_granularity=GranularityRecord(
            name=config.granularity.name, quant_cfg_overrides=overrides
        ),
        effective_quant_cfg=tuple(_plain(entry) for entry in config.entries),
        effective_quantizer_summary=dict(findings.measurement.quantizers),
        algorithm=_plain(config.algorithm),
        effective_bits=config.effective_bits,
        digest=config.digest,
    )


def _layers(
    groups: Sequence[GroupScore], selection: Selection, findings: Findings
) -> dict[str, LayerRecord]:
    owner = {name: i for i, group in enumerate(groups) for name in group.modules}
    return {
        name: LayerRecord(
            group=groups[owner[name]].name if name in owner else "",
            quantized=name in owner and groups[owner[name]].quantized,
            selected=name in owner and selection.chosen[owner[name]] == 0,
            module_type=linear.module_type,
            out_features=linear.out_features,
            in_features=linear.in_features,
            padded_to=padded_to(linear, findings.config),
        )
        for name, linear in findings.linears.items()
    }


def _sensitivity(
    group: GroupScore, score: float, weights: int, rank: int, config: EffectiveConfig
) -> GroupSensitivity:
    quantized = f"{config.pair.format_name}(effective-bits: {config.effective_bits})"
    return GroupSensitivity(
        formats=(quantized, UNQUANTIZED_FORMAT),
        scores=(_finite(score), 0.0),
        costs=(weights * config.effective_bits / UNQUANTIZED_BITS, float(weights)),
        importance=_finite(score),
        rank=rank,
        module_names=group.modules,
    )


def _selection(scores: Sequence[float], weights: Sequence[int], findings: Findings) -> Selection:
    """Quantized is candidate 0, unquantized candidate 1; a broken score is never worth taking."""
    if not scores:
        return Selection(
            chosen=(),
            score=0.0,
            effective_bits=UNQUANTIZED_BITS,
            is_satisfied=False,
            minimum_effective_bits=UNQUANTIZED_BITS,
        )
    ceiling = max((s for s in scores if math.isfinite(s)), default=1.0) * len(scores) or 1.0
    groups = [
        ScoredGroup(
            name=group.modules[0],
            scores=(score if math.isfinite(score) else ceiling,),
            bits=(findings.config.effective_bits,),
            weights=count,
        ).with_unquantized()
        for group, score, count in zip(findings.measurement.groups, scores, weights, strict=True)
    ]
    return select_formats(groups, findings.run_config.effective_bits)


def _autoquant_state(
    scores: Sequence[float], selection: Selection, budget: float
) -> AutoquantState:
    chosen = [s for s, i in zip(scores, selection.chosen, strict=True) if i == 0]
    return AutoquantState(
        constraints=Constraints(effective_bits=budget),
        score=_finite(sum(chosen)),
        total_score=_finite(sum(scores)),
        effective_bits=selection.effective_bits,
        minimum_effective_bits=selection.minimum_effective_bits,
        is_satisfied=selection.is_satisfied,
    )


def _ranking(scores: Sequence[float]) -> list[int]:
    """Indices from most to least sensitive; broken scores come first, ties keep module order."""
    broken = [i for i, score in enumerate(scores) if not math.isfinite(score)]
    finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
    return broken + sorted(finite, key=lambda i: -scores[i])


def _ranks(ranking: Sequence[int]) -> list[int]:
    ranks = [0] * len(ranking)
    for rank, index in enumerate(ranking, start=1):
        ranks[index] = rank
    return ranks


def per_token(group: GroupScore, data: CalibrationData) -> float:
    """Return a score per scored token."""
    return group.score / data.scored_tokens


def _num_weights(group: GroupScore, linears: Mapping[str, Linear]) -> int:
    return sum(linears[name].num_weights for name in group.modules)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return nested mappings and tuples as the dicts and lists that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
