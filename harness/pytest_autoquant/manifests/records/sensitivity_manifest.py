"""The sensitivity manifest: one case's complete, versioned record.

``docs/manifest.schema.json`` is its JSON schema. Non-finite numbers are written as ``null``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pytest_autoquant.allocation.scored_group import Cost
from pytest_autoquant.files import read_bytes
from pytest_autoquant.manifests.layout import CasePlace, manifest_path
from pytest_autoquant.manifests.records.consistency.sensitivity import manifest_disagreements
from pytest_autoquant.manifests.records.json_record import (
    SCHEMA_VERSION,
    STRICT,
    dump_record,
    first_problem,
    invalid_record,
    load_record,
)
from pytest_autoquant.manifests.records.score_check import ScoreCheck
from pytest_autoquant.manifests.records.whole_model import WholeModelKL

#: Suffix of a group's name after its first member: ModelOpt registers the group's hyperparameter as
#: ``quant_recipe`` of that module (modelopt/torch/quantization/algorithms.py, ModelOpt 0.47).
GROUP_SUFFIX = ".quant_recipe"

#: A layer must have fewer weights than this, far above any real one: larger shapes are damage.
_LARGEST_LAYER = 2**63

#: How a case that has a manifest ended; an alias has effective config and captions of another.
CaseStatus = Literal["measured", "alias", "failed"]

#: AutoQuant's scoring methods.
Method = Literal["gradient", "kl_div", "fisher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """The case and how it ended.

    Attributes:
        alias_of: the case that measured the same effective config on the same captions, for an
            alias.
        problems: why a failed case failed.
        notes: what a reader of the scores should know, e.g. that captions were missing.
    """

    __pydantic_config__ = STRICT
    case_id: str
    pair: str
    weight: str
    activation: str
    granularity: str
    size: str
    method: Method
    experimental: bool
    status: CaseStatus
    alias_of: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoquantRun:
    """The AutoQuant run, with the keys of manifests from before the harness."""

    __pydantic_config__ = STRICT
    name: str
    auto_quantize_bits: float
    auto_quantize_method: str
    auto_quantize_score_size: int
    coverage_mode: Literal["lm_only"]
    coverage_fraction: float
    quant_formats: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The measured model.

    Attributes:
        digest: sha256 of its config and weights; of its weights alone for a hub checkpoint.
        commit: of the hub's repository that it was read from; None for a local folder, for weights
            that need nothing from the hub, and in older manifests.
    """

    __pydantic_config__ = STRICT
    id: str
    name: str
    architecture: str
    weights: Literal["checkpoint", "random"]
    dtype: str
    num_parameters: int
    num_language_model_linears: int
    digest: str
    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """The captions that were used.

    Attributes:
        sha256: of the scored captions and then the others, one per line, each part sorted: the
            order of captions changes no score.
        tokens_sha256: of their token ids, in the same way; None in older manifests.
        token_lengths: number of captions by length in tokens.
        num_dropped: captions too short to predict a token; the next ones took their places.
        num_duplicates: captions with the tokens of an earlier one; None in older manifests.
        num_truncated: captions that were cut to ``max_tokens``; both are None in older manifests,
            which have no limit.
        scored_captions: of every scored caption the first 8 hexadecimal digits of a sha256 over its
            token ids, sorted; empty in manifests from before it was recorded. It tells which
            captions two cases have in common.
        scored_predictions: next-token predictions of each of them, in the same order; empty in
            earlier manifests.
    """

    __pydantic_config__ = STRICT
    name: str
    size: str
    sha256: str
    tokens_sha256: str | None = None
    num_requested: int
    num_calib_samples: int
    num_score_samples: int
    num_tokens: int
    num_scored_tokens: int
    token_lengths: dict[int, int]
    batch_size: int
    num_calib_batches: int
    num_score_batches: int
    num_dropped: int
    num_duplicates: int | None = None
    num_truncated: int | None = None
    max_tokens: int | None = None
    scored_captions: tuple[str, ...] = ()
    scored_predictions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GranularityRecord:
    """The granularity, an overlay over the pair's config."""

    __pydantic_config__ = STRICT
    name: str
    quant_cfg_overrides: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecord:
    """The quantization config given to ModelOpt.

    Attributes:
        base_is_modelopt_preset: whether the base quantizes as the preset of that name does that
            the installed ModelOpt has.
        effective_quant_cfg: the base with the overlay, and the modules of this model that were not
            measured; ``formats.quant_cfg.recorded_entries`` reads it for ``mtq.quantize``.
        effective_bits: bits stored per weight over all layers, every scale included; in
            manifests without ``nominal_effective_bits`` this is the nominal number.
        active_bits: bits per weight that a token is multiplied with, over all layers; None where
            those are all weights, and in earlier manifests.
        nominal_effective_bits: what ModelOpt was given, without padding and without scales per
            channel and per tensor; None in earlier manifests.
        digest: equal for configs that give equal quantized bits.
    """

    __pydantic_config__ = STRICT
    base_format_name: str
    base_is_modelopt_preset: bool
    quant_granularity: GranularityRecord
    effective_quant_cfg: tuple[dict[str, Any], ...]
    effective_quantizer_summary: dict[str, str]
    algorithm: Any
    effective_bits: float
    active_bits: float | None = None
    nominal_effective_bits: float | None = None
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One linear of the language model.

    Attributes:
        group: name of the layer's group.
        quantized: whether the quantizers were active while the layer was scored.
        selected: whether the bit budget keeps the layer quantized.
        padded_to: input width rounded up to whole blocks; None if the block size divides it.
        stored_bits: of the quantized weight, every scale included; None in earlier
            manifests.
    """

    __pydantic_config__ = STRICT
    group: str
    quantized: bool
    selected: bool
    module_type: str
    out_features: int
    in_features: int
    padded_to: int | None
    stored_bits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSensitivity:
    """One layer group. Scores are None if they are not finite.

    What ``uncertainty`` derives is None for a single scored caption, for stock AutoQuant, which
    does not tell captions apart, if a score is not finite, and in earlier manifests.

    Attributes:
        formats: the case's format, then the unquantized one; ``scores`` and ``costs`` follow it.
        scores: per scored token.
        costs: stored bits / 16, ModelOpt's unit; padding and scales are stored too.
        active_weights: those that a token is multiplied with; None where those are all weights of
            the group.
        importance: score of the case's format.
        rank: 1 is the most sensitive.
        keeps_16_bits: whether no budget quantizes it, because the weights or inputs of a member are
            all zero.
        standard_error: of the score, over captions.
        rank_interval: the first and last rank that other captions may give; 95%.
        top_ten_probability: that the group is among the ten most sensitive.
        caption_scores: the score by caption, not divided by tokens, in the order of
            ``DatasetRecord.scored_captions``; see ``packed_scores``.
    """

    __pydantic_config__ = STRICT
    formats: tuple[str, ...]
    scores: tuple[float | None, ...]
    costs: tuple[float, ...]
    importance: float | None
    rank: int
    module_names: tuple[str, ...]
    active_weights: int | None = None
    keeps_16_bits: bool = False
    standard_error: float | None = None
    rank_interval: tuple[int, int] | None = None
    top_ten_probability: float | None = None
    caption_scores: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedGroup:
    """A layer group's place in the ranking, which starts with the most sensitive."""

    __pydantic_config__ = STRICT
    name: str
    importance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """The bit budget: bits per weight of the searched layers, scales included.

    ``RunConfig.cost`` says of which weights: all stored ones, or those active for a token.
    """

    __pydantic_config__ = STRICT
    effective_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoquantState:
    """The selection of searched layers under the bit budget.

    Attributes:
        score: predicted score of the selection, per scored token.
        total_score: score of quantizing every group, per scored token.
        effective_bits: stored per weight.
        active_bits: per weight that a token is multiplied with; None where those are all weights.
        minimum_effective_bits: the smallest budget that can be met.
        is_satisfied: false if no selection meets the budget; the smallest one is recorded then.
    """

    __pydantic_config__ = STRICT
    constraints: Constraints
    score: float | None
    total_score: float | None
    effective_bits: float
    active_bits: float | None = None
    minimum_effective_bits: float
    is_satisfied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTokens:
    """How many calibration tokens each expert of one layer saw.

    Attributes:
        per_token: experts that a token is routed to.
        tokens: by expert, in order: numbers with a blank between them.
    """

    __pydantic_config__ = STRICT
    per_token: int
    tokens: str

    @property
    def counts(self) -> tuple[int, ...]:
        """The tokens that each expert saw."""
        return tuple(map(int, self.tokens.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRecord:
    """Versions and device; ``host`` and ``user`` are recorded only with ``--aq-record-host``."""

    __pydantic_config__ = STRICT
    harness: str
    python: str
    torch: str
    transformers: str
    modelopt: str
    cuda: str | None
    device: str
    device_name: str
    platform: str
    host: str | None
    user: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRecord:
    """Peak memory in bytes: of the process since its start, and of the GPU during the case."""

    __pydantic_config__ = STRICT
    peak_rss_bytes: int
    peak_cuda_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The options that influence the result; ``cost`` is what the bit budget counts."""

    __pydantic_config__ = STRICT
    engine: str
    engine_reason: str
    device: str
    dtype: str
    weights: str
    batch_size: int
    score_size: int
    effective_bits: float
    cost: Cost = "stored"
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One case's record; ``timing`` has seconds by phase.

    ``measured_at`` is in UTC, ISO 8601; None in manifests from before it was recorded.
    ``score_check`` compares the scores with the measured KL divergence; where it is None,
    ``score_not_checked`` says why. Both are None for ``kl_div`` and in earlier manifests.
    ``whole_model`` has the KL divergence with every group quantized; where it is None,
    ``whole_model_not_measured`` says why. Both are None in earlier manifests.
    ``expert_tokens`` is by fused experts; empty for a dense model and in earlier manifests.
    ``layer_sensitivity`` is the truth about scores. ``sensitivity_ranking`` and the totals repeat
    it for readers; a manifest whose copies disagree is not valid, see ``consistency``.
    """

    __pydantic_config__ = STRICT
    schema_version: int = SCHEMA_VERSION
    case: CaseRecord
    scheme: AutoquantRun
    model: ModelRecord
    dataset: DatasetRecord
    quantization: QuantizationRecord
    num_quantized_layers: int
    layers: dict[str, LayerRecord]
    layer_sensitivity: dict[str, GroupSensitivity]
    expert_tokens: dict[str, ExpertTokens] = field(default_factory=dict)
    sensitivity_ranking: tuple[RankedGroup, ...]
    autoquant_state: AutoquantState
    environment: EnvironmentRecord
    timing: Mapping[str, float] = field(default_factory=dict)
    memory: MemoryRecord
    run_config: RunConfig
    measured_at: str | None = None
    score_check: ScoreCheck | None = None
    score_not_checked: str | None = None
    whole_model: WholeModelKL | None = None
    whole_model_not_measured: str | None = None

    @property
    def path(self) -> Path:
        """Where the manifest belongs, relative to the report root."""
        case = self.case
        return manifest_path(
            CasePlace(
                model=self.model.name,
                pair=case.pair,
                weight=case.weight,
                activation=case.activation,
                granularity=case.granularity,
                size=case.size,
                method=case.method,
            )
        )


def dump_manifest(manifest: Manifest) -> str:
    """Return the manifest as indented JSON with a final newline."""
    return dump_record(manifest)


def load_manifest(text: str | bytes, *, source: str) -> Manifest:
    """Read a manifest from JSON.

    Raises:
        RecordError: the text is not JSON, has no schema version or a newer one, a field is
            missing, malformed or names a group or layer that is not there, or two copies of one
            fact disagree. The message starts with ``source``.
    """
    manifest = load_record(Manifest, text, source=source, name="manifest")
    checks = (_serialization_problems, _reference_problems, manifest_disagreements)
    for problem in chain.from_iterable(check(manifest) for check in checks):
        raise invalid_record(problem, source=source, name="manifest")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file; see ``load_manifest``."""
    return load_manifest(read_bytes(path), source=str(path))


def _serialization_problems(manifest: Manifest) -> Iterator[str]:
    """Yield why a valid manifest cannot be written again, e.g. nesting in a field of any type."""
    try:
        dump_record(manifest)
    except (ValueError, OverflowError) as error:
        yield first_problem(error)


def _reference_problems(manifest: Manifest) -> Iterator[str]:
    """Yield groups that no budget can select, names without a record, impossible layers."""
    for ranked in manifest.sensitivity_ranking:
        if ranked.name not in manifest.layer_sensitivity:
            yield (
                f"sensitivity_ranking names group {ranked.name!r}, which layer_sensitivity does "
                "not have"
            )
    for key, group in manifest.layer_sensitivity.items():
        if len(group.scores) != 2 or len(group.costs) != 2 or group.costs[1] < 1:
            yield f"layer_sensitivity.{key}: must have two scores and two costs, the last above 0"
        if not group.module_names:
            yield f"layer_sensitivity.{key}: must name a layer"
        for name in group.module_names:
            if name not in manifest.layers:
                yield f"layer_sensitivity names layer {name!r}, which layers does not have"
    for name, group in manifest.layer_sensitivity.items():
        if group.active_weights is not None and not 0 < group.active_weights <= group.costs[-1]:
            yield f"layer_sensitivity.{name}: active_weights must be above 0 and at most all"
    yield from _expert_problems(manifest)
    for name, layer in manifest.layers.items():
        if layer.out_features * layer.in_features >= _LARGEST_LAYER:
            yield f"layer {name!r}: out_features x in_features must be below 2**63"


def _expert_problems(manifest: Manifest) -> Iterator[str]:
    """Yield experts whose tokens are not all calibration tokens, routed."""
    for name, experts in manifest.expert_tokens.items():
        if name not in manifest.layers:
            yield f"expert_tokens names layer {name!r}, which layers does not have"
        try:
            seen = sum(map(abs, experts.counts))
        except ValueError:
            yield f"expert_tokens.{name}: tokens must be whole numbers with blanks between them"
            continue
        if seen != experts.per_token * manifest.dataset.num_tokens:
            yield f"expert_tokens.{name}: tokens must add up to per_token x dataset.num_tokens"
