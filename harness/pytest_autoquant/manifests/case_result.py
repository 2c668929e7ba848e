"""A case's result as reports and comparisons use it.

Manifests of this harness and those from before it are both converted to it; None stands for what
an old manifest does not record.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pytest_autoquant.allocation.scored_group import Cost
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS
from pytest_autoquant.manifests.fingerprint import Fingerprint, fingerprint_of
from pytest_autoquant.manifests.group_names import short_names
from pytest_autoquant.manifests.records.score_check import GroupDivergence, ScoreCheck
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    GROUP_SUFFIX,
    AutoquantState,
    CaseStatus,
    GroupSensitivity,
    Manifest,
)
from pytest_autoquant.manifests.records.whole_model import WholeModelKL
from pytest_autoquant.text import shown_duration, shown_time

UNKNOWN = "unknown"

#: What one bit budget is per, by its cost.
COUNTED: Mapping[Cost, str] = {
    "stored": "weight",
    "active": "weight that a token is multiplied with",
}

#: ``ModelRecord.weights`` of a model that was not trained.
RANDOM = "random"

_LAYER_INDEX = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBar:
    """What is known of a group's noise over captions; see ``GroupSensitivity``."""

    standard_error: float
    rank_interval: tuple[int, int]
    top_ten_probability: float
    caption_scores: str

    @property
    def ranks(self) -> str:
        """The ranks that other captions may give: ``3``, or for ties ``2 to 4``."""
        first, last = self.rank_interval
        return str(first) if first == last else f"{first} to {last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One layer group.

    Attributes:
        name: the group's first linear.
        score: per scored token; None if it is not finite.
        rank: 1 is the most sensitive.
        modules: the group's linears; empty if an old manifest does not record them.
        weights: number of weights in the group.
        selected: whether the bit budget keeps the group quantized.
        bits: stored per weight where the group is quantized, scales included.
        keeps_16_bits: whether no budget quantizes it.
        active_weights: those that a token is multiplied with; None where those are all.
        error: error bars over captions; None if they are not known.
        divergence: measured KL divergence; None if the scores were not checked.
    """

    name: str
    score: float | None
    rank: int
    modules: tuple[str, ...]
    weights: int | None
    selected: bool | None
    bits: float | None = None
    keeps_16_bits: bool = False
    active_weights: int | None = None
    error: ErrorBar | None = None
    divergence: GroupDivergence | None = None

    @property
    def layer(self) -> int | None:
        """Index of the decoder layer; None outside one, as lm_head is."""
        return _place(self.name, self.modules)[0]

    @property
    def projection(self) -> str:
        """The group's linears within the layer, e.g. ``self_attn.{q,k,v}_proj``."""
        return _place(self.name, self.modules)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionResult:
    """The selection under the bit budget: bits per weight, and its predicted score.

    Attributes:
        cost: which weights ``budget`` and ``minimum_bits`` count.
        active_bits: per weight that a token is multiplied with; None where those are all.
    """

    budget: float | None = None
    cost: Cost = "stored"
    bits: float | None = None
    active_bits: float | None = None
    minimum_bits: float | None = None
    score: float | None = None
    is_satisfied: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCaptions:
    """The captions that a case was scored on.

    Attributes:
        name: of the file or the built-in set.
        count: number of captions; None if it is not recorded.
        digests: one per caption, see ``DatasetRecord.scored_captions``; empty if not recorded.
        predictions: next-token predictions of each of them; empty if not recorded.
    """

    name: str = UNKNOWN
    count: int | None = None
    digests: tuple[str, ...] = ()
    predictions: tuple[int, ...] = ()

    def in_common(self, other: ScoredCaptions) -> int | None:
        """Return how many captions both have; None if that is unknown.

        Without digests: sizes are the first captions of a file, so of two cases on one file the
        smaller set is part of the larger.
        """
        if self.digests and other.digests:
            return (Counter(self.digests) & Counter(other.digests)).total()
        if self.name != other.name or self.count is None or other.count is None:
            return None
        return min(self.count, other.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSource:
    """Where a case's numbers come from.

    Attributes:
        scored: the captions that were scored.
        weights: ``checkpoint`` or ``random``; None if it is not recorded.
        measured_at: time in UTC, ISO 8601; None if it is not recorded.
        seconds: what measuring the case took; None for an alias and if it is not recorded.
        manifest: path of the manifest below the report root, with ``/``.
        origin: model, data, versions and device, by label.
        fingerprint: None for a manifest from before the harness, which lacks the digests.
    """

    manifest: str
    origin: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None
    scored: ScoredCaptions = field(default_factory=ScoredCaptions)
    weights: str | None = None
    measured_at: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case; the defaults stand for what a manifest from before the harness does not have.

    Attributes:
        model: the model's name in folders and case ids.
        effective_bits: bits stored per weight under the case's format, scales included.
        active_bits: likewise per weight that a token is multiplied with; None where those are all.
        groups: most sensitive first; ``module_order`` has their names in model order.
        total_score: score of quantizing every group, per scored token; None if it is not finite.
        quantizers: ModelOpt's description of each active quantizer.
        score_check: how the scores rank the groups beside the measured KL divergence; where it is
            None, ``score_not_checked`` says why, if a check was possible.
        whole: the KL divergence with every group quantized; where it is None,
            ``whole_not_measured`` says why.
    """

    case_id: str
    model: str
    pair: str
    granularity: str
    size: str
    method: str
    status: CaseStatus = "measured"
    alias_of: str | None = None
    experimental: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...]
    format_name: str
    effective_bits: float | None
    active_bits: float | None = None
    groups: tuple[Group, ...]
    module_order: tuple[str, ...]
    total_score: float | None
    selection: SelectionResult
    quantizers: Mapping[str, str] = field(default_factory=dict)
    source: CaseSource
    score_check: ScoreCheck | None = None
    score_not_checked: str | None = None
    whole: WholeModelKL | None = None
    whole_not_measured: str | None = None

    @property
    def manifest(self) -> str:
        """Path of the manifest below the report root, with ``/``."""
        return self.source.manifest

    @property
    def origin(self) -> Mapping[str, str]:
        """Model, data, versions and device, by label."""
        return self.source.origin

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The inputs of the measurement; None for a manifest from before the harness."""
        return self.source.fingerprint

    @property
    def scored(self) -> ScoredCaptions:
        """The captions that were scored."""
        return self.source.scored

    @property
    def has_random_weights(self) -> bool:
        """Whether the model's weights are random."""
        return self.source.weights == RANDOM

    @property
    def measured(self) -> str:
        """When the case was measured and how long that took, as far as it is recorded."""
        seconds = self.source.seconds
        took = "" if seconds is None else f", took {shown_duration(seconds)}"
        return shown_time(self.source.measured_at) + took

    @property
    def whole_kl(self) -> float | None:
        """The measured KL divergence with every group quantized, in nats per token."""
        return None if self.whole is None else self.whole.kl

    @property
    def is_old(self) -> bool:
        """Whether the manifest is from before the harness."""
        return self.fingerprint is None

    @property
    def unit(self) -> str:
        """The unit of the scores."""
        if self.is_old:
            return "in an unknown unit"
        return "nats per token" if self.method == "kl_div" else "per token"

    @property
    def top_group(self) -> str:
        """The most sensitive group; empty if there is none."""
        return self.groups[0].name if self.groups else ""

    @property
    def in_module_order(self) -> tuple[Group, ...]:
        """The groups in model order."""
        by_name = {group.name: group for group in self.groups}
        return tuple(by_name[name] for name in self.module_order)

    @property
    def short_names(self) -> dict[str, str]:
        """Each group's name without the model's path, by its name; see ``group_names``."""
        return dict(zip(self.module_order, short_names(self.module_order), strict=True))

    @property
    def selected_groups(self) -> int:
        """Number of groups that the bit budget keeps quantized."""
        return sum(group.selected is True for group in self.groups)

    @property
    def shares(self) -> dict[str, float]:
        """Each group's part of the total score; empty if there is no total."""
        if not self.total_score:
            return {}
        return {group.name: (group.score or 0.0) / self.total_score for group in self.groups}


def case_result_of(manifest: Manifest, path: Path | None = None) -> CaseResult:
    """Return what reports show of a manifest.

    Args:
        path: the manifest's file below the report root, by default where it belongs.
    """
    case = manifest.case
    return CaseResult(
        case_id=case.case_id,
        model=manifest.model.name,
        pair=case.pair,
        granularity=case.granularity,
        size=case.size,
        method=case.method,
        status=case.status,
        alias_of=case.alias_of,
        experimental=case.experimental,
        problems=case.problems,
        notes=case.notes,
        format_name=manifest.quantization.base_format_name,
        effective_bits=manifest.quantization.effective_bits,
        active_bits=manifest.quantization.active_bits,
        groups=tuple(_group(manifest, ranked.name) for ranked in manifest.sensitivity_ranking),
        module_order=tuple(name.removesuffix(GROUP_SUFFIX) for name in manifest.layer_sensitivity),
        total_score=manifest.autoquant_state.total_score,
        selection=_selection(manifest.autoquant_state, manifest.run_config.cost),
        quantizers=manifest.quantization.effective_quantizer_summary,
        source=CaseSource(
            manifest=(path or manifest.path).as_posix(),
            origin=_origin(manifest),
            fingerprint=fingerprint_of(manifest),
            scored=ScoredCaptions(
                name=manifest.dataset.name,
                count=manifest.dataset.num_score_samples,
                digests=manifest.dataset.scored_captions,
                predictions=manifest.dataset.scored_predictions,
            ),
            weights=manifest.model.weights,
            measured_at=manifest.measured_at,
            seconds=manifest.timing.get("total"),
        ),
        score_check=manifest.score_check,
        score_not_checked=manifest.score_not_checked,
        whole=manifest.whole_model,
        whole_not_measured=manifest.whole_model_not_measured,
    )


def finite(value: float | None) -> float | None:
    """Return ``value`` where it is a finite number, else None."""
    return value if value is not None and math.isfinite(value) else None


def _group(manifest: Manifest, name: str) -> Group:
    recorded, check = manifest.layer_sensitivity[name], manifest.score_check
    members = [manifest.layers[name] for name in recorded.module_names]
    return Group(
        name=name.removesuffix(GROUP_SUFFIX),
        score=recorded.importance,
        rank=recorded.rank,
        modules=recorded.module_names,
        weights=sum(layer.out_features * layer.in_features for layer in members),
        selected=all(layer.selected for layer in members),
        bits=_stored_bits(recorded),
        keeps_16_bits=recorded.keeps_16_bits,
        active_weights=recorded.active_weights,
        error=_error_bar(recorded),
        divergence=None if check is None else check.groups[name],
    )


def _error_bar(group: GroupSensitivity) -> ErrorBar | None:
    if (
        group.standard_error is None
        or group.rank_interval is None
        or group.top_ten_probability is None
        or group.caption_scores is None
    ):
        return None
    return ErrorBar(
        standard_error=group.standard_error,
        rank_interval=group.rank_interval,
        top_ten_probability=group.top_ten_probability,
        caption_scores=group.caption_scores,
    )


def _stored_bits(group: GroupSensitivity) -> float | None:
    """Return the bits per weight in a group's costs, which are weights x bits / 16."""
    if len(group.costs) != 2 or group.costs[1] <= 0:
        return None
    return finite(UNQUANTIZED_BITS * group.costs[0] / group.costs[1])


def _selection(state: AutoquantState, cost: Cost) -> SelectionResult:
    return SelectionResult(
        budget=state.constraints.effective_bits,
        cost=cost,
        bits=state.effective_bits,
        active_bits=state.active_bits,
        minimum_bits=state.minimum_effective_bits,
        score=state.score,
        is_satisfied=state.is_satisfied,
    )


def _origin(manifest: Manifest) -> dict[str, str]:
    model, data, env, run = (
        manifest.model,
        manifest.dataset,
        manifest.environment,
        manifest.run_config,
    )
    return {
        "model": f"{model.id} ({model.weights} weights)",
        "model digest": model.digest,
        "architecture": model.architecture,
        "compute dtype": model.dtype,
        "captions": (
            f"{data.name}, {data.size}: {data.num_calib_samples} calibrated, "
            f"{data.num_score_samples} scored ({data.num_scored_tokens} tokens)"
        ),
        "captions digest": f"{data.size}: {data.sha256}",
        "token ids digest": f"{data.size}: {data.tokens_sha256 or UNKNOWN}",
        "date": (manifest.measured_at or UNKNOWN)[:10],
        "method": manifest.case.method,
        "engine": run.engine,
        "bit budget": f"{run.effective_bits:g} bits per {COUNTED[run.cost]}",
        "device": f"{env.device_name} ({env.device})",
        "platform": env.platform,
        "CUDA": env.cuda or "none",
        "harness": env.harness,
        "ModelOpt": env.modelopt,
        "torch": env.torch,
        "transformers": env.transformers,
        "Python": env.python,
    }


@lru_cache(maxsize=4096)
def _place(name: str, modules: tuple[str, ...]) -> tuple[int | None, str]:
    found = _LAYER_INDEX.search(name)
    members = [_within_layer(module) for module in modules or (name,)]
    return None if found is None else int(found[1]), _joined(members)


def _joined(members: list[str]) -> str:
    """Join siblings, ``a.q_proj`` and ``a.k_proj`` to ``a.{q,k}_proj``; else return the first."""
    parents = {member.rpartition(".")[0] for member in members}
    if len(members) == 1 or len(parents) > 1:
        return members[0]
    (parent,) = parents
    names = [member.rpartition(".")[2] for member in members]
    ends = {name.rpartition("_")[2] for name in names}
    starts = [name.rpartition("_")[0] for name in names]
    joined = f"{{{','.join(names)}}}"
    if len(ends) == 1 and all(starts):
        joined = f"{{{','.join(starts)}}}_{ends.pop()}"
    return f"{parent}.{joined}" if parent else joined


def _within_layer(name: str) -> str:
    """Cut off everything up to the first index: ``model.layers.3.mlp.up_proj`` -> ``mlp.up_proj``.

    A name without an index is returned whole.
    """
    found = _LAYER_INDEX.search(name)
    return name if found is None else name[found.end() :]
