"""Turn what an engine measured into a manifest."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS, EffectiveConfig
from pytest_autoquant.formats.quant_cfg import Entry, is_enabled
from pytest_autoquant.grid.case import Case
from pytest_autoquant.manifests.records.packed_scores import pack_scores
from pytest_autoquant.manifests.records.score_check import ScoreCheck
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    AutoquantRun,
    CaseRecord,
    DatasetRecord,
    EnvironmentRecord,
    ExpertTokens,
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
from pytest_autoquant.manifests.records.whole_model import WholeModelKL
from pytest_autoquant.manifests.selection import SelectedGroups, select_groups
from pytest_autoquant.manifests.uncertainty import CaptionSample, group_uncertainties
from pytest_autoquant.models.layers import Linear, bits_per_active_weight, bits_per_weight
from pytest_autoquant.phases import PhaseClock
from pytest_autoquant.scoring.engine import GroupScore, Measurement, silent_groups
from pytest_autoquant.text import counted, first_few, now_utc

UNQUANTIZED_FORMAT = f"NONE(effective-bits: {UNQUANTIZED_BITS})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything about one case that its manifest is made of.

    ``linears`` is by module name, in module order, ``others`` the linears and convolutions that are
    not measured; ``alias_of`` names the case that measured;
    ``started`` is the clock (``time.perf_counter``) when the case began; ``score_check`` and
    ``whole_model`` are text where there is none, and why.
    """

    case: Case
    config: EffectiveConfig
    measurement: Measurement
    data: CalibrationData
    linears: Mapping[str, Linear]
    others: tuple[str, ...] = ()
    alias_of: str | None
    notes: tuple[str, ...]
    model: ModelRecord
    environment: EnvironmentRecord
    memory: MemoryRecord
    run_config: RunConfig
    started: float
    expert_tokens: Mapping[str, ExpertTokens] = field(default_factory=dict)
    score_check: ScoreCheck | str | None = None
    whole_model: WholeModelKL | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSize:
    """Weights of a layer group, and the bits that they store: every scale included.

    ``active_weights`` are those that a token is multiplied with; None where those are all.
    """

    weights: int
    stored_bits: int
    active_weights: int | None = None

    @property
    def bits(self) -> float:
        """Bits stored per weight."""
        return self.stored_bits / self.weights


def build_manifest(findings: Findings, clock: PhaseClock | None = None) -> Manifest:
    """Rank the groups, select under the bit budget and put the record together."""
    groups = findings.measurement.groups
    scores = [per_token(group, findings.data) for group in groups]
    sizes = [group_size(group.modules, findings.linears, findings.config) for group in groups]
    problems = find_problems(findings.measurement, findings.linears)
    ranking = _ranking(scores)
    sensitivity = _with_error_bars(
        {
            group.name: _sensitivity(group, score, size, rank, findings)
            for group, score, size, rank in zip(groups, scores, sizes, _ranks(ranking), strict=True)
        },
        findings,
    )
    run = findings.run_config
    with (clock or PhaseClock()).phase("selection"):
        selected = select_groups(sensitivity, run.effective_bits, run.cost)
    check, whole = findings.score_check, findings.whole_model
    return Manifest(
        case=_case_record(findings, problems),
        scheme=_scheme(findings),
        model=findings.model,
        dataset=dataset_record(findings.data),
        quantization=_quantization(findings),
        num_quantized_layers=sum(len(group.modules) for group in groups if group.quantized),
        layers=_layers(groups, selected, findings),
        layer_sensitivity=sensitivity,
        expert_tokens=dict(findings.expert_tokens),
        sensitivity_ranking=tuple(
            RankedGroup(name=groups[i].name, importance=_finite(scores[i])) for i in ranking
        ),
        autoquant_state=selected.state,
        environment=findings.environment,
        timing=_timing(findings),
        memory=findings.memory,
        run_config=findings.run_config,
        measured_at=now_utc(),
        score_check=None if isinstance(check, str) else check,
        score_not_checked=check if isinstance(check, str) else None,
        whole_model=None if isinstance(whole, str) else whole,
        whole_model_not_measured=whole if isinstance(whole, str) else None,
    )


def find_problems(measurement: Measurement, linears: Mapping[str, Linear]) -> tuple[str, ...]:
    """Return what makes a measurement invalid: nothing searched, groups without a true score."""
    problems, groups = [], measurement.groups
    if not groups:
        problems.append("nothing was quantized: AutoQuant searched no layer group")
    left_out = sorted(set(linears) - {name for group in groups for name in group.modules})
    if left_out and groups:
        problems.append(f"no score for {counted(len(left_out), 'linear')}: {first_few(left_out)}")
    idle = [group.name for group in groups if not group.quantized]
    if idle:
        problems.append(f"quantizers were off in {counted(len(idle), 'group')}: {first_few(idle)}")
    broken = [group.name for group in groups if not math.isfinite(group.score)]
    if broken:
        problems.append(
            f"scores are not finite in {counted(len(broken), 'group')}: {first_few(broken)}"
        )
    silent = silent_groups(measurement)
    if silent:
        problems.append(
            f"nothing passed through {counted(len(silent), 'group')}, so a score of zero says "
            f"nothing: {first_few(silent)} never ran, or all inputs or all gradients were zero"
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
        tokens_sha256=data.tokens_sha256,
        num_requested=data.captions.requested,
        num_calib_samples=data.num_captions,
        num_score_samples=data.num_score_samples,
        num_tokens=sum(batch.num_tokens for batch in data.batches),
        num_scored_tokens=data.scored_tokens,
        token_lengths=data.token_lengths,
        batch_size=data.batch_size,
        num_calib_batches=len(data.batches),
        num_score_batches=len(data.scored),
        num_dropped=len(data.dropped),
        num_duplicates=data.num_duplicates,
        num_truncated=data.num_truncated,
        max_tokens=data.max_tokens,
        scored_captions=data.scored_digests,
        scored_predictions=data.scored_predictions,
    )


def _quantization(findings: Findings) -> QuantizationRecord:
    config = findings.config
    overrides = {name: _plain(half) for name, half in config.granularity.overrides.items()}
    return QuantizationRecord(
        base_format_name=config.pair.format_name,
        base_is_modelopt_preset=config.is_modelopt_preset,
        quant_granularity=GranularityRecord(
            name=config.granularity.name, quant_cfg_overrides=overrides
        ),
        effective_quant_cfg=tuple(map(_plain, _measured_entries(config, findings.others))),
        effective_quantizer_summary=dict(findings.measurement.quantizers),
        algorithm=_plain(config.algorithm),
        effective_bits=bits_per_weight(findings.linears.values(), config),
        active_bits=bits_per_active_weight(findings.linears.values(), config),
        nominal_effective_bits=config.effective_bits,
        digest=config.digest,
    )


def _measured_entries(config: EffectiveConfig, others: Sequence[str]) -> list[Entry]:
    """Return the config's entries, and one per other module that they would quantize."""
    quantizers = [name for name in others if is_enabled(config.entries, f"{name}.weight_quantizer")]
    off = [{"quantizer_name": f"{name}.*", "enable": False} for name in quantizers]
    return [*config.entries, *off]


def _layers(
    groups: Sequence[GroupScore], selected: SelectedGroups, findings: Findings
) -> dict[str, LayerRecord]:
    owner = {name: group for group in groups for name in group.modules}
    return {
        name: LayerRecord(
            group=owner[name].name if name in owner else "",
            quantized=name in owner and owner[name].quantized,
            selected=name in owner and owner[name].name in selected.names,
            module_type=linear.module_type,
            out_features=linear.out_features,
            in_features=linear.in_features,
            padded_to=linear.padded_to(findings.config),
            stored_bits=linear.stored_bits(findings.config),
        )
        for name, linear in findings.linears.items()
    }


def _sensitivity(
    group: GroupScore, score: float, size: GroupSize, rank: int, findings: Findings
) -> GroupSensitivity:
    quantized = f"{findings.config.pair.format_name}(effective-bits: {size.bits:.6g})"
    return GroupSensitivity(
        formats=(quantized, UNQUANTIZED_FORMAT),
        scores=(_finite(score), 0.0),
        costs=(size.stored_bits / UNQUANTIZED_BITS, float(size.weights)),
        importance=_finite(score),
        rank=rank,
        module_names=group.modules,
        active_weights=size.active_weights,
        keeps_16_bits=findings.measurement.signal.keeps_16_bits(group.modules),
    )


def _with_error_bars(
    sensitivity: dict[str, GroupSensitivity], findings: Findings
) -> dict[str, GroupSensitivity]:
    """Add what the scores by caption tell, if the engine has them and they are finite."""
    groups, data = findings.measurement.groups, findings.data
    parts = [group.per_caption for group in groups if group.per_caption is not None]
    if len(parts) < len(groups):
        return sensitivity
    sample = CaptionSample(
        captions=data.scored_digests, predictions=data.scored_predictions, scores=parts
    )
    return sensitivity | {
        group.name: replace(
            sensitivity[group.name],
            standard_error=found.standard_error,
            rank_interval=found.rank_interval,
            top_ten_probability=found.top_ten_probability,
            caption_scores=pack_scores(part),
        )
        for group, found, part in zip(groups, group_uncertainties(sample), parts, strict=False)
    }


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


def group_size(
    modules: Sequence[str], linears: Mapping[str, Linear], config: EffectiveConfig
) -> GroupSize:
    """Return what a group of linears holds and stores under a config."""
    members = [linears[name] for name in modules]
    weights = sum(linear.num_weights for linear in members)
    active = sum(linear.active_weights for linear in members)
    return GroupSize(
        weights=weights,
        active_weights=active if active < weights else None,
        stored_bits=sum(linear.stored_bits(config) for linear in members),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return nested mappings and tuples as the dicts and lists that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
