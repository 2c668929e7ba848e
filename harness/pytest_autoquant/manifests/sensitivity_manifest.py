"""The manifest: one case's complete, versioned record.

Plain frozen dataclasses; pydantic validates what is read and writes what is dumped, and gives the
JSON schema in ``docs/manifest.schema.json``. Non-finite numbers are written as ``null``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_autoquant.errors import RecordError
from pytest_autoquant.files import load_json
from pytest_autoquant.text import one_line, slug

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 1
MANIFEST_SUFFIX = "_autoquant_lm_quant_manifest.json"
GROUP_SUFFIX = ".quant_recipe"
"""What ModelOpt appends to a group's first member to name the group."""

STATE_SUFFIX = "_autoquant_lm_autoquant_state.pt"

_STRICT = {"extra": "forbid", "allow_inf_nan": False}
_LARGEST_LAYER = 2**63
_UNPUBLISHED = ("tmp", "baseline")
_OURS = re.compile(r"tmp|baseline|summary\.(md|json)|schemes\.md|index\.html|grid-.*\.svg")
"""What lies at the report root beside the models' folders."""


#: How a case that has a manifest ended; an alias has the same effective config as another case.
CaseStatus = Literal["measured", "alias", "failed"]

#: AutoQuant's scoring methods.
Method = Literal["gradient", "kl_div"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """Which case this is and how it ended.

    ``alias_of`` names the case that measured the same effective config; ``problems`` says why a
    ``failed`` case failed.
    """

    __pydantic_config__ = _STRICT
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
    """The AutoQuant run in the terms older manifests use."""

    __pydantic_config__ = _STRICT
    name: str
    auto_quantize_bits: float
    auto_quantize_method: str
    auto_quantize_score_size: int
    coverage_mode: Literal["lm_only"]
    coverage_fraction: float
    quant_formats: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The measured model; ``digest`` is sha256 over its config and weights."""

    __pydantic_config__ = _STRICT
    id: str
    name: str
    architecture: str
    weights: Literal["checkpoint", "random"]
    dtype: str
    num_parameters: int
    num_language_model_linears: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """The captions actually used.

    ``sha256`` is over the scored ones and then the others, one per line, each part sorted: the
    order of captions changes no score.
    """

    __pydantic_config__ = _STRICT
    name: str
    size: str
    sha256: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GranularityRecord:
    """The overlay."""

    __pydantic_config__ = _STRICT
    name: str
    quant_cfg_overrides: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecord:
    """What ModelOpt was asked to do; ``digest`` identifies equal quantized bits."""

    __pydantic_config__ = _STRICT
    base_format_name: str
    base_is_modelopt_preset: bool
    quant_granularity: GranularityRecord
    effective_quant_cfg: tuple[dict[str, Any], ...]
    effective_quantizer_summary: dict[str, str]
    algorithm: Any
    effective_bits: float
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One language-model linear.

    ``quantized``: its quantizers were active while it was scored. ``selected``: the bit budget
    keeps it quantized. ``padded_to``: its input width rounded up to whole blocks, where the block
    size does not divide it.
    """

    __pydantic_config__ = _STRICT
    group: str
    quantized: bool
    selected: bool
    module_type: str
    out_features: int
    in_features: int
    padded_to: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSensitivity:
    """One layer group: formats are the case's and unquantized, in the order of the lists.

    ``scores`` and ``importance`` (the case format's score) are per scored token; ``costs`` are in
    ModelOpt's unit, weights x bits / 16. ``rank`` 1 is the most sensitive. None where a score is
    not finite.
    """

    __pydantic_config__ = _STRICT
    formats: tuple[str, ...]
    scores: tuple[float | None, ...]
    costs: tuple[float, ...]
    importance: float | None
    rank: int
    module_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedGroup:
    """A line of the ranking, most sensitive first."""

    __pydantic_config__ = _STRICT
    name: str
    importance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """The bit budget: bits stored per weight over the searched layers, scales included."""

    __pydantic_config__ = _STRICT
    effective_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoquantState:
    """The selection under the bit budget, over the searched layers.

    ``score`` is the selection's predicted score, ``total_score`` that of quantizing every group,
    both per scored token. When the budget cannot be met, ``is_satisfied`` is false and the
    smallest choice is recorded.
    """

    __pydantic_config__ = _STRICT
    constraints: Constraints
    score: float | None
    total_score: float | None
    effective_bits: float
    minimum_effective_bits: float
    is_satisfied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRecord:
    """Where it ran; ``host`` and ``user`` only with ``--aq-record-host``."""

    __pydantic_config__ = _STRICT
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
    """Peak memory in bytes: of the process so far, and of the GPU during the case."""

    __pydantic_config__ = _STRICT
    peak_rss_bytes: int
    peak_cuda_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The options that shaped the result."""

    __pydantic_config__ = _STRICT
    engine: str
    engine_reason: str
    device: str
    dtype: str
    weights: str
    batch_size: int
    score_size: int
    effective_bits: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One case's record. ``timing`` is in seconds by phase."""

    __pydantic_config__ = _STRICT
    schema_version: int = SCHEMA_VERSION
    case: CaseRecord
    scheme: AutoquantRun
    model: ModelRecord
    dataset: DatasetRecord
    quantization: QuantizationRecord
    num_quantized_layers: int
    layers: dict[str, LayerRecord]
    layer_sensitivity: dict[str, GroupSensitivity]
    sensitivity_ranking: tuple[RankedGroup, ...]
    autoquant_state: AutoquantState
    environment: EnvironmentRecord
    timing: dict[str, float] = field(default_factory=dict)
    memory: MemoryRecord
    run_config: RunConfig

    @property
    def path(self) -> Path:
        """Where the manifest belongs, relative to the report root."""
        case = self.case
        return manifest_path(
            model=self.model.name,
            pair=case.pair,
            weight=case.weight,
            activation=case.activation,
            granularity=case.granularity,
            size=case.size,
            method=case.method,
        )


def manifest_path(
    *,
    model: str,
    pair: str,
    weight: str,
    activation: str,
    granularity: str,
    size: str,
    method: str,
) -> Path:
    """Return ``model/weight-W-act-A/granularity/size/`` and the file; ``size-kl_div`` if by that.

    A user's pair of its own name, beside the built-in one of the same dtypes, adds that name to the
    second part.
    """
    dtypes = f"weight-{weight}-act-{activation}"
    if pair != f"w{weight}_a{activation}":
        dtypes = f"{dtypes}-{pair}"
    last = size if method == "gradient" else f"{size}-{method}"
    folder = Path(*(slug(name) for name in (model, dtypes, granularity, last)))
    if _OURS.fullmatch(folder.parts[0]):
        folder = f"{folder.parts[0]}-model" / folder.relative_to(folder.parts[0])
    return folder / f"{slug(pair)}{MANIFEST_SUFFIX}"


def dump_manifest(manifest: Manifest) -> str:
    """Return the manifest as indented JSON with a final newline."""
    return _adapter().dump_json(manifest, indent=2).decode() + "\n"


def load_manifest(text: str | bytes, *, source: str) -> Manifest:
    """Read a manifest from JSON.

    Raises:
        RecordError: no JSON, another or a newer schema, a missing or malformed field. The
            message starts with ``source``.
    """
    try:
        raw = load_json(text)
    except ValueError as error:
        raise RecordError(f"{source}: is not JSON: {one_line(error, 500)}") from None
    check_version(raw, source)
    try:
        manifest = _adapter().validate_python(raw)
        _adapter().dump_json(manifest)
    except (ValueError, OverflowError) as error:
        raise RecordError(f"{source}: is not a valid manifest: {first_problem(error)}") from None
    for problem in _problems(manifest):
        raise RecordError(f"{source}: is not a valid manifest: {one_line(problem, 500)}")
    return manifest


def check_version(raw: object, source: str) -> None:
    """Raise RecordError unless a document has a schema version that can be read here."""
    version = raw.get("schema_version") if isinstance(raw, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordError(f"{source}: is not a manifest: it has no schema_version")
    refuse_newer(version, source)


def refuse_newer(version: int, source: str) -> None:
    """Raise RecordError for a schema version that this one does not know yet."""
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{source}: written by a newer version: schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}; upgrade pytest-autoquant"
        )


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file; see ``load_manifest``."""
    try:
        return load_manifest(path.read_bytes(), source=str(path))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error


def find_manifests(root: Path) -> list[Path]:
    """Return every manifest file under ``root``, in path order, without those in ``root/tmp``.

    ``reports/tmp`` holds throwaway runs and ``reports/baseline`` what they are compared with; they
    are no part of what ``reports`` publishes.
    """
    found = sorted(path for path in root.rglob(f"*{MANIFEST_SUFFIX}") if not path.is_dir())
    return [path for path in found if path.relative_to(root).parts[0] not in _UNPUBLISHED]


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema of a manifest file."""
    return _adapter().json_schema(mode="serialization")


def _problems(manifest: Manifest) -> Iterator[str]:
    """Say which groups and layers have no record, and which layers no computer holds."""
    for ranked in manifest.sensitivity_ranking:
        if ranked.name not in manifest.layer_sensitivity:
            yield f"{ranked.name!r} is named and not there"
    for group in manifest.layer_sensitivity.values():
        for name in group.module_names:
            if name not in manifest.layers:
                yield f"{name!r} is named and not there"
    for name, layer in manifest.layers.items():
        if layer.out_features * layer.in_features >= _LARGEST_LAYER:
            yield f"{name!r} is larger than any layer"


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def first_problem(error: Exception) -> str:
    """Say which field was the first that pydantic refused, and how many there are."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return one_line(error, 500)
    first = error.errors(include_input=False, include_url=False)[0]
    where = one_line(".".join(str(part) for part in first["loc"]), 500)
    return f"{where}: {first['msg']} ({error.error_count()} problems)"
