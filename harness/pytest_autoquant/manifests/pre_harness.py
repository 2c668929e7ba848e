"""Manifests from before the harness: no schema version, no digests, most of the origin missing.

What they do not record stays unknown. Their rankings are comparable with ours, their scores are
not: those depend on batch size, padding and a mean loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from pytest_autoquant.files import load_json, read_bytes
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS
from pytest_autoquant.manifests.case_result import (
    UNKNOWN,
    CaseResult,
    CaseSource,
    Group,
    SelectionResult,
    case_result_of,
)
from pytest_autoquant.manifests.layout import ANY_MANIFEST_SUFFIX
from pytest_autoquant.manifests.records.consistency.sensitivity import ranking_disagreements
from pytest_autoquant.manifests.records.json_record import invalid_record, validate_record
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    GROUP_SUFFIX,
    Manifest,
    load_manifest,
)
from pytest_autoquant.text import slug

NOTE = (
    "a manifest from before the harness: its ranking compares with other cases, its scores do not, "
    "and its bits per weight may leave out block scales"
)
#: What such a record is called in error messages.
_PRE_HARNESS = "manifest from before the harness"

_UNQUANTIZED = "NONE"
_BITS = re.compile(r"effective-bits: ([0-9.]+)\)")
#: Bits of the weights' dtype in a pair's name, ``wint8_aint4``, or in a config's: ``W4A8_...``,
#: ``INT8_WEIGHT_INT4_ACT_CFG``, ``NVFP4_DEFAULT_CFG``.
_WEIGHT_BITS = re.compile(r"(?:w(?:nv|mx)?(?:int|fp)?|(?:nv|mx)?(?:int|fp))(\d+)(?=_|a)", re.ASCII)
_SCHEME_SUFFIX = "_autoquant_lm"
_LENIENT = {"extra": "ignore", "allow_inf_nan": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scheme:
    __pydantic_config__ = _LENIENT
    name: str | None = None
    auto_quantize_bits: float | None = None
    auto_quantize_method: str = UNKNOWN
    quant_formats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    __pydantic_config__ = _LENIENT
    id: str = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dataset:
    __pydantic_config__ = _LENIENT
    name: str = UNKNOWN
    size: str = UNKNOWN
    num_calib_samples: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Granularity:
    __pydantic_config__ = _LENIENT
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantization:
    __pydantic_config__ = _LENIENT
    base_format_name: str | None = None
    quant_granularity: _Granularity = field(default_factory=_Granularity)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Formats are candidates, the unquantized one last; costs are weights x bits / 16."""

    __pydantic_config__ = _LENIENT
    formats: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()
    costs: tuple[float | None, ...] = ()
    importance: float | None = None
    module_names: tuple[str, ...] = ()

    @property
    def quantized_format(self) -> str | None:
        """The candidate that quantizes; None if the group was not searched."""
        return next((name for name in self.formats if not name.startswith(_UNQUANTIZED)), None)

    @property
    def weights(self) -> int | None:
        """The cost of the unquantized candidate, which is 1 per weight; None if not recorded."""
        for name, cost in zip(self.formats, self.costs, strict=False):
            if name.startswith(_UNQUANTIZED) and cost is not None:
                return round(cost)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    __pydantic_config__ = _LENIENT
    name: str | None = None
    importance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Constraints:
    __pydantic_config__ = _LENIENT
    effective_bits: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    __pydantic_config__ = _LENIENT
    constraints: _Constraints = field(default_factory=_Constraints)
    score: float | None = None
    is_satisfied: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _OldManifest:
    """The fields that old manifests have and reports show; only the groups are required."""

    __pydantic_config__ = _LENIENT
    layer_sensitivity: dict[str, _Group]
    sensitivity_ranking: tuple[_Ranked, ...] = ()
    scheme: _Scheme = field(default_factory=_Scheme)
    model: _Model = field(default_factory=_Model)
    dataset: _Dataset = field(default_factory=_Dataset)
    quantization: _Quantization = field(default_factory=_Quantization)
    autoquant_state: _State = field(default_factory=_State)


def read_sensitivity(path: Path, root: Path) -> CaseResult:
    """Read a manifest of any age as a case result; see ``read_any``."""
    found = read_any(path, root)
    if isinstance(found, CaseResult):
        return found
    return case_result_of(found, path.relative_to(root))


def read_any(path: Path, root: Path) -> Manifest | CaseResult:
    """Read a manifest of this harness as a manifest, and one from before it as a case result.

    Args:
        root: the report root; the file's path below it is in the result and in errors.

    Raises:
        RecordError: the file cannot be read, is not a manifest, or a newer version wrote it.
    """
    name = path.relative_to(root).as_posix()
    content = read_bytes(path, name)
    raw = _mapping(content) if b'"schema_version"' not in content else None
    if raw is None or "layer_sensitivity" not in raw:
        return load_manifest(content, source=name)
    old = validate_record(_OldManifest, raw, source=name, name=_PRE_HARNESS)
    for problem in _disagreements(old):
        raise invalid_record(problem, source=name, name=_PRE_HARNESS)
    found = _case_result(old, PurePosixPath(name), path.parts)
    if not found.groups:
        raise invalid_record("no layer group was quantized", source=name, name=_PRE_HARNESS)
    return found


def _disagreements(old: _OldManifest) -> Iterator[str]:
    """Yield where the two copies of a score disagree; what is not recorded twice agrees."""
    return ranking_disagreements(
        {
            name: group.importance
            for name, group in old.layer_sensitivity.items()
            if group.importance is not None
        },
        [
            (ranked.name, ranked.importance)
            for ranked in old.sensitivity_ranking
            if ranked.name is not None and ranked.importance is not None
        ],
    )


def _mapping(content: bytes) -> Mapping[str, Any] | None:
    try:
        raw = load_json(content)
    except ValueError:
        return None
    return raw if isinstance(raw, Mapping) else None


def _case_result(old: _OldManifest, relative: PurePosixPath, parts: tuple[str, ...]) -> CaseResult:
    groups = tuple(_ranked(old.layer_sensitivity))
    formats = old.scheme.quant_formats
    name = _case_name(old, relative, parts)
    recorded = _recorded_bits(old.layer_sensitivity)
    bits, remarks = _stored_bits(recorded, (name.pair, old.quantization.base_format_name, *formats))
    return CaseResult(
        case_id="/".join(name),
        model=name.model,
        pair=name.pair,
        granularity=name.granularity,
        size=name.size,
        method=name.method,
        notes=(NOTE, *remarks),
        format_name=old.quantization.base_format_name or (formats[0] if formats else UNKNOWN),
        effective_bits=bits,
        groups=groups,
        module_order=tuple(
            name.removesuffix(GROUP_SUFFIX)
            for name, group in old.layer_sensitivity.items()
            if group.quantized_format is not None
        ),
        total_score=_total(groups),
        selection=SelectionResult(
            budget=old.autoquant_state.constraints.effective_bits or old.scheme.auto_quantize_bits,
            score=old.autoquant_state.score,
            is_satisfied=old.autoquant_state.is_satisfied,
        ),
        source=CaseSource(manifest=str(relative), origin=_origin(old)),
    )


class _Name(NamedTuple):
    """The parts of a case id, in its order."""

    model: str
    pair: str
    granularity: str
    size: str
    method: str


def _case_name(old: _OldManifest, relative: PurePosixPath, parts: tuple[str, ...]) -> _Name:
    """Return the case's name; the file's name and folder stand in for what is not recorded."""
    pair = _last_part(old.scheme.name or relative.name.removesuffix(ANY_MANIFEST_SUFFIX))
    size = _last_part(old.dataset.size)
    granularity = old.quantization.quant_granularity.name or _granularity_folder(parts, size)
    return _Name(
        model=slug(_last_part(old.model.id)),
        pair=pair.removesuffix(_SCHEME_SUFFIX),
        granularity=_last_part(granularity),
        size=size,
        method=_last_part(old.scheme.auto_quantize_method),
    )


def _total(groups: Sequence[Group]) -> float | None:
    scores = [group.score for group in groups if group.score is not None]
    return sum(scores) if len(scores) == len(groups) else None


def _ranked(found: Mapping[str, _Group]) -> Iterator[Group]:
    """Yield the searched groups, most sensitive first, and before them those without a score.

    The recorded ranks are not used: they start at the least sensitive group and include groups
    that no format quantizes.
    """
    searched = {name: group for name, group in found.items() if group.quantized_format is not None}
    scores = {name: _score(group) for name, group in searched.items()}
    ordered = sorted(
        searched, key=lambda name: float("inf") if scores[name] is None else scores[name] or 0.0
    )
    for rank, name in enumerate(reversed(ordered), start=1):
        yield Group(
            name=name.removesuffix(GROUP_SUFFIX),
            score=scores[name],
            rank=rank,
            modules=searched[name].module_names,
            weights=searched[name].weights,
            selected=None,
        )


def _score(group: _Group) -> float | None:
    if group.importance is not None:
        return group.importance
    by_format = dict(zip(group.formats, group.scores, strict=False))
    return by_format.get(group.quantized_format or "")


def _stored_bits(
    recorded: float | None, names: Sequence[str | None]
) -> tuple[float | None, tuple[str, ...]]:
    """Return the bits stored per weight, with a note where they are not those recorded.

    ModelOpt takes the smaller of the weights' and the inputs' bits where a config does not set
    ``effective_bits`` (``estimate_quant_compression`` in modelopt/torch/quantization/algorithms.py,
    0.47.0): 8-bit weights with 4-bit activations count 4.

    Args:
        names: of the pair and the format; the first that tells the weights' dtype counts.
    """
    found = (_WEIGHT_BITS.match(name.lower()) for name in names if name)
    stored = next((float(match[1]) for match in found if match is not None), None)
    if recorded is None or stored is None or recorded >= stored or stored > UNQUANTIZED_BITS:
        return recorded, ()
    note = (
        f"the manifest records {recorded:g} bits per weight, the smaller of weights and "
        f"activations: the weights store {stored:g}"
    )
    return stored, (note,)


def _recorded_bits(groups: Mapping[str, _Group]) -> float | None:
    """Return the bits in the formats' names, if all names agree."""
    names = {group.quantized_format for group in groups.values() if group.quantized_format}
    bits = {found[1] for name in names if (found := _BITS.search(name))}
    try:
        return float(bits.pop()) if len(bits) == 1 else None
    except ValueError:
        return None


def _granularity_folder(parts: tuple[str, ...], size: str) -> str:
    """Return the granularity in ``<granularity>/<size>/file``, the folders of old manifests."""
    return parts[-3] if len(parts) > 3 and parts[-2] == size else UNKNOWN


def _origin(old: _OldManifest) -> dict[str, str]:
    count = old.dataset.num_calib_samples
    captions = UNKNOWN if count is None else f"{count} calibrated"
    return {
        "model": _last_part(old.model.id),
        "captions": f"{_last_part(old.dataset.name)}, {_last_part(old.dataset.size)}: {captions}",
        "method": _last_part(old.scheme.auto_quantize_method),
        "device": UNKNOWN,
        "harness": "none: a manifest from before it",
        "ModelOpt": UNKNOWN,
        "torch": UNKNOWN,
        "transformers": UNKNOWN,
    }


def _last_part(name: str) -> str:
    """Return the last part of a name that may be a POSIX or Windows path."""
    return PureWindowsPath(name).name or UNKNOWN
