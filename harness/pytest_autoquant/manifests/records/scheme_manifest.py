"""The scheme manifest: one scheme's decisions, prediction, measured damage and checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pytest_autoquant.allocation.scored_group import Cost
from pytest_autoquant.files import read_bytes
from pytest_autoquant.manifests.layout import SCHEME_MANIFEST, scheme_folder
from pytest_autoquant.manifests.records.consistency.scheme import scheme_disagreements
from pytest_autoquant.manifests.records.json_record import (
    SCHEMA_VERSION,
    STRICT,
    dump_record,
    invalid_record,
    load_record,
)
from pytest_autoquant.manifests.records.packed_scores import unpack_scores
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    DatasetRecord,
    EnvironmentRecord,
    MemoryRecord,
    ModelRecord,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeRecord:
    """The scheme's rule.

    Attributes:
        left_out: by candidate, why the target runtime cannot load it.
        amount: in the unit of ``measure``.
        target: the runtime whose limits apply; None if there is none.
        max_kl: the largest measured KL divergence that ``--aq-max-kl`` lets pass, in nats per
            token; None for no limit.
        method: by which the groups were scored; None in earlier manifests.
        cost: which weights ``effective_bits`` counts: all stored ones, or those active for a token.
    """

    __pydantic_config__ = STRICT
    name: str
    candidates: tuple[str, ...]
    left_out: dict[str, str]
    measure: Literal["fraction_of_groups", "fraction_of_weights", "effective_bits", "max_kl"]
    amount: float
    target: str | None
    max_kl: float | None = None
    method: str | None = None
    cost: Cost = "stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDecision:
    """One layer group.

    Attributes:
        weights: number of weights in the group.
        active_weights: those that a token is multiplied with; None where those are all.
        format: the candidate that was chosen; None if the group stays unquantized.
        scores: score per scored token by candidate.
        bits: stored per weight in the chosen format, every scale included; 16 if the group
            stays unquantized, None in earlier manifests.
        left_out: by candidate, why the group cannot take it.
        kl: KL divergence on the held-out captions, in nats per token, with this group alone
            quantized to its format; None if it stays unquantized or was not measured so.
    """

    __pydantic_config__ = STRICT
    name: str
    modules: tuple[str, ...]
    weights: int
    active_weights: int | None = None
    format: str | None
    scores: dict[str, float]
    bits: float | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRecord:
    """All decisions together.

    Attributes:
        score: predicted score per scored token.
        effective_bits: bits stored per weight, every scale included.
        active_bits: likewise per weight that a token is multiplied with; None where those are all.
        fraction_of_groups: share of groups that are quantized, from 0 to 1.
        fraction_of_weights: share of weights that are quantized, from 0 to 1.
    """

    __pydantic_config__ = STRICT
    score: float
    effective_bits: float
    active_bits: float | None = None
    fraction_of_groups: float
    fraction_of_weights: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The lowest predicted score within a budget of bits per weight, and the bits it stores."""

    __pydantic_config__ = STRICT
    budget: float
    effective_bits: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredDamage:
    """The quantized model compared with the unquantized one on held-out captions.

    Attributes:
        kl: nats per predicted token.
        loss: cross-entropy of the quantized model, in nats per predicted token.
        loss_before: cross-entropy of the unquantized model.
        agreement: share of predicted tokens with the same most likely token.
        captions: name of the held-out set; ``sha256`` over its lines.
        standard_error: of ``kl`` over captions; None for a single caption and in earlier manifests.
        caption_kl: base64 of little-endian fp32, the divergence of each caption in nats, in the
            order of their digests.
        caption_predictions: next-token predictions of each caption, in that order.
    """

    __pydantic_config__ = STRICT
    kl: float
    loss: float
    loss_before: float
    agreement: float
    num_tokens: int
    captions: str
    sha256: str
    standard_error: float | None = None
    caption_kl: str | None = None
    caption_predictions: tuple[int, ...] = ()

    @property
    def by_caption(self) -> tuple[float, ...]:
        """The divergence of each caption in nats; empty in earlier manifests."""
        return unpack_scores(self.caption_kl or "", len(self.caption_predictions))

    @property
    def perplexity(self) -> float:
        """Perplexity of the quantized model; infinite if it is too large for a float."""
        return _exponential(self.loss)

    @property
    def perplexity_before(self) -> float:
        """Perplexity of the unquantized model."""
        return _exponential(self.loss_before)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """A selection that was measured; ``kl`` in nats per token, None if it is not finite."""

    __pydantic_config__ = STRICT
    effective_bits: float
    score: float
    kl: float | None
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """How the fewest bits within a measured KL divergence were found.

    Attributes:
        limit: the largest measured KL divergence that passes: the scheme's, or ``--aq-max-kl`` if
            that is smaller.
        steps: in the order in which they were measured. The passing one with the fewest bits is
            the scheme.
        num_selections: selections on the exact frontier that quantize a group.
        num_unmeasured: those between the scheme and the next smaller one that was measured.
    """

    __pydantic_config__ = STRICT
    limit: float
    steps: tuple[SearchStep, ...]
    num_selections: int
    num_unmeasured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionRecord:
    """Whether the damages of the quantized groups add up.

    Attributes:
        sum_kl: KL divergences of the groups, each quantized alone, summed, in nats per token, on
            the same captions and with the same ranges as the scheme.
        ratio: KL divergence of the scheme / ``sum_kl``. 1 if damages add up; above 1 they reinforce
            each other, below 1 they cancel in part.
        standard_error: of ``ratio`` over captions; None for a single caption.
        not_measured: why there is no ratio.
    """

    __pydantic_config__ = STRICT
    sum_kl: float | None = None
    ratio: float | None = None
    standard_error: float | None = None
    not_measured: str | None = None


#: A scheme against the best uniform one: its measured KL divergence is lower, higher, the same
#: within the noise, or it is that uniform scheme.
Verdict = Literal["better", "worse", "no difference", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformRecord:
    """The scheme against the plain choice: one candidate for every group that can take it.

    Attributes:
        kl: measured KL divergence of each candidate's uniform scheme that stores at most the
            scheme's bits, None if it is not finite or could not be measured.
        candidate: the one with the lowest.
        effective_bits: bits per weight that it stores.
        difference: the scheme's KL divergence minus the candidate's, in nats per token.
        standard_error: of ``difference`` over captions, paired; None for a single caption.
        noise: half the width of the difference's 95% interval.
        verdict: None without an interval.
        not_compared: why there is no verdict.
    """

    __pydantic_config__ = STRICT
    kl: dict[str, float | None] = field(default_factory=dict)
    candidate: str | None = None
    effective_bits: float | None = None
    difference: float | None = None
    standard_error: float | None = None
    noise: float | None = None
    verdict: Verdict | None = None
    not_compared: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ViolationRecord:
    """A rule of the target runtime that the checkpoint violates."""

    __pydantic_config__ = STRICT
    rule: str
    tensor: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """The checkpoint.

    Attributes:
        bytes_before: size of the unquantized weights.
        bytes_after: size of the safetensors files.
        num_quantized: linears read back and compared with ModelOpt's fake-quantized weights.
        largest_error: largest deviation in that comparison, relative to the linear's largest
            weight.
        num_identical: other tensors, vision tower included, that are equal bit for bit.
        violations: rules of vLLM's loader that the checkpoint violates, a record per cause.
        warnings: what vLLM tolerates, a record per cause.
        not_checked: which of the rules were not applied and why; None if all were, and in manifests
            of versions that recorded a checkpoint only if all were.
        load: whether vLLM loaded the checkpoint.
        load_text: the version that loaded it, or why it was not loaded.
    """

    __pydantic_config__ = STRICT
    bytes_before: int
    bytes_after: int
    num_quantized: int
    largest_error: float
    num_identical: int
    violations: tuple[ViolationRecord, ...]
    load: Literal["loaded", "failed", "not tried"]
    load_text: str
    warnings: tuple[ViolationRecord, ...] = ()
    not_checked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeManifest:
    """One scheme applied to one model.

    ``export`` is None if no export was requested; ``timing`` has seconds by phase. ``measured_at``
    is in UTC, ISO 8601; None in manifests from before it was recorded.

    Attributes:
        notes: what a reader of the decisions should know, e.g. that a linear is all zero.
        search: of a scheme whose rule is ``max_kl``.
        interaction: None in earlier manifests, as is ``uniform``.
    """

    __pydantic_config__ = STRICT
    schema_version: int = SCHEMA_VERSION
    case_id: str
    scheme: SchemeRecord
    notes: tuple[str, ...] = ()
    model: ModelRecord
    dataset: DatasetRecord
    groups: tuple[GroupDecision, ...]
    allocation: AllocationRecord
    frontier: tuple[FrontierPoint, ...]
    measured: MeasuredDamage
    export: ExportRecord | None
    environment: EnvironmentRecord
    timing: Mapping[str, float]
    memory: MemoryRecord
    measured_at: str | None = None
    search: SearchRecord | None = None
    interaction: InteractionRecord | None = None
    uniform: UniformRecord | None = None

    @property
    def path(self) -> Path:
        """Where the manifest belongs, relative to the report root."""
        return scheme_folder(self.model.name, self.scheme.name) / SCHEME_MANIFEST


def dump_scheme(manifest: SchemeManifest) -> str:
    """Return the manifest as indented JSON with a final newline."""
    return dump_record(manifest)


def load_scheme(text: str | bytes, *, source: str) -> SchemeManifest:
    """Read a scheme manifest from JSON.

    Raises:
        RecordError: the text is not JSON, has no schema version or a newer one, a field is missing
            or malformed, or two copies of one fact disagree. The message starts with ``source``.
    """
    found = load_record(SchemeManifest, text, source=source, name="scheme manifest")
    for problem in scheme_disagreements(found):
        raise invalid_record(problem, source=source, name="scheme manifest")
    return found


def read_scheme_manifest(path: Path, root: Path) -> SchemeManifest:
    """Read a scheme manifest file; errors name it below ``root``."""
    name = path.relative_to(root).as_posix()
    return load_scheme(read_bytes(path, name), source=name)


def _exponential(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
