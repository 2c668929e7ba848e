"""Whether vLLM's ModelOpt loader would take an exported checkpoint, as far as its files tell.

vLLM loads several broken exports without a word and then answers with NaN or nonsense, so every
rule here is applied to the files themselves: safetensors headers, the scales, both configs. What
no rule covers is not claimed, and nothing is tried in vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pytest_autoquant.errors import ModelError
from pytest_autoquant.export.checkpoint_files import (
    EXPORT_AGAIN,
    LONGEST,
    Tensor,
    entry_of,
    is_there,
    last_part,
    malformed,
    read_object,
    read_tensors,
)
from pytest_autoquant.text import one_line

CONFIG, HF_CONFIG = "config.json", "hf_quant_config.json"


MIXED = "MIXED_PRECISION"
ALGORITHMS = (
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_WO",
    "NVFP4",
    "W4A16_NVFP4",
    "MXFP8",
    MIXED,
)
MIXED_ALGORITHMS = ("FP8", "NVFP4", "W4A16_NVFP4")
"""What a layer of a mixed checkpoint can be; vLLM takes any other for an unquantized one."""

_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
_LINEAR_SCALES = ("weight_scale", "weight_scale_2", "weight_scale_inv", "input_scale")
_KV_SCALES = {"k_proj": "k_scale", "v_proj": "v_scale"}

_QWEN3_VL = (
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)
_PREFIXES = {
    "Qwen3VLForConditionalGeneration": _QWEN3_VL,
    "Qwen2_5_VLForConditionalGeneration": (*_QWEN3_VL, ("model.", "language_model.model.")),
}
"""How vLLM renames what a checkpoint holds, per architecture, in its order."""

_VISION = "visual."
_PARTS = ("language_model.model.", "language_model.lm_head.", _VISION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that a rule forbids.

    Attributes:
        rule: a name of ``RULES``.
        tensor: the tensor that is wrong or missing; of a wrong config, its key.
    """

    rule: str
    tensor: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What one of the two config files says is quantized.

    Attributes:
        method: ``quant_method``; None in a file that has no such key.
        algorithm: upper case, as vLLM takes it.
        excluded: patterns of module names.
        layers: the algorithm of each layer of a mixed checkpoint.
        kv_cache: ``FP8``, None, or whatever else is given.
    """

    source: str
    method: str | None
    algorithm: str | None
    excluded: tuple[str, ...]
    layers: Mapping[str, str]
    kv_cache: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear of the language model.

    Attributes:
        name: in the checkpoint.
        layer: of vLLM, which fuses q, k and v, and gate and up.
        algorithm: what the config declares; None if it is not to be quantized.
        excluded: whether its own name is excluded word for word.
        scales: the tensors that belong to it, by the last part of their name.
    """

    name: str
    layer: str
    algorithm: str | None
    excluded: bool
    weight: Tensor
    scales: Mapping[str, Tensor]

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint holds it quantized, whatever the config declares."""
        return bool(self.scales) or self.weight.is_quantized_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An exported checkpoint, its scales not read yet.

    Attributes:
        quantizations: what ``config.json`` says, which vLLM reads first, and what
            ``hf_quant_config.json`` says; empty if nothing is quantized.
        tensors: by name.
    """

    architecture: str
    quantizations: tuple[Quantization, ...]
    tensors: Mapping[str, Tensor]

    @property
    def quantization(self) -> Quantization | None:
        """What vLLM goes by; None if nothing is quantized."""
        return next(iter(self.quantizations), None)

    def vllm_name(self, name: str) -> str:
        """Return what vLLM calls a module, tensor or pattern of the checkpoint."""
        for old, new in _PREFIXES[self.architecture]:
            if name.startswith(old):
                name = new + name.removeprefix(old)
        return name

    def is_vision(self, tensor: Tensor) -> bool:
        """Whether a tensor belongs to the vision tower."""
        return self.vllm_name(tensor.name).startswith(_VISION)

    def linears(self) -> Iterator[Linear]:
        """Yield every linear of the language model, in name order."""
        declared = _Declared(self)
        for name in sorted(self.tensors):
            weight = self.tensors[name]
            module = self.vllm_name(name).removesuffix(".weight")
            if _is_linear(weight) and module.startswith("language_model."):
                yield Linear(
                    name=weight.module,
                    layer=_fused(module),
                    algorithm=declared.algorithm(module),
                    excluded=module in declared.patterns,
                    weight=weight,
                    scales=self._scales(weight.module),
                )

    def _scales(self, module: str) -> Mapping[str, Tensor]:
        named = ((kind, self.tensors.get(f"{module}.{kind}")) for kind in _LINEAR_SCALES)
        return {kind: tensor for kind, tensor in named if tensor is not None}


def check_export(folder: Path) -> tuple[Violation, ...]:
    """Apply every rule to an exported checkpoint; none broken gives an empty tuple.

    Raises:
        ModelError: the folder holds no export that can be read, or one of an architecture whose
            names in vLLM are not known here.
    """
    return find_violations(read_export(folder))


def find_violations(export: Export) -> tuple[Violation, ...]:
    """Apply every rule to an export that was read; see ``check_export``."""
    return tuple(violation for check in RULES.values() for violation in check(export))


def export_report(folder: Path, export: Export, violations: tuple[Violation, ...]) -> str:
    """Say what was found, a line each, what the export holds, and what that is worth."""
    linears = list(export.linears())
    quantized = sum(linear.is_quantized for linear in linears)
    given = export.quantization
    kind = "no quantization" if given is None else given.algorithm or "no algorithm"
    lines = [one_line(f"{found.rule}: {found.tensor} {found.text}") for found in violations]
    lines.append(
        f"{folder}: {one_line(kind, LONGEST)}, {quantized} of {len(linears)} linears quantized"
    )
    if not violations:
        lines.append(f"no violation of the {len(RULES)} static rules found; not tried in vLLM")
    else:
        names = ", ".join(dict.fromkeys(violation.rule for violation in violations))
        lines.append(f"violations: {len(violations)}, of the rules {names}; not tried in vLLM")
    return "\n".join(lines)


def read_export(folder: Path) -> Export:
    """Read the configs and the safetensors headers of an export; see ``check_export``."""
    if not is_there(folder.is_dir):
        raise ModelError(f"{folder}: no such folder; give one that holds an exported checkpoint")
    config = read_object(folder / CONFIG)
    return Export(
        architecture=_architecture(config, folder / CONFIG),
        quantizations=tuple(_quantizations(config, folder)),
        tensors=read_tensors(folder),
    )


# --- rules


def _configs(export: Export) -> Iterator[Violation]:
    """Both files say the same: vLLM reads one of them, other programs the other."""
    if len(export.quantizations) < 2:
        return
    ours, theirs = export.quantizations
    for key, mine, other in (
        ("quant_algo", ours.algorithm, theirs.algorithm),
        ("kv_cache_quant_algo", ours.kv_cache, theirs.kv_cache),
        ("exclude_modules", frozenset(ours.excluded), frozenset(theirs.excluded)),
        ("quantized_layers", frozenset(ours.layers.items()), frozenset(theirs.layers.items())),
    ):
        if mine != other:
            yield Violation(
                rule="configs",
                tensor=key,
                text=f"is {_only(mine, other)} in {ours.source} and {_only(other, mine)} in "
                f"{theirs.source}",
            )


def _algorithm(export: Export) -> Iterator[Violation]:
    """vLLM's ModelOpt loader knows the method and the algorithm."""
    quantization = export.quantization
    if quantization is None:
        return
    for key, problem in _algorithm_problems(quantization):
        yield Violation(rule="algorithm", tensor=key, text=problem)


def _algorithm_problems(given: Quantization) -> Iterator[tuple[str, str]]:
    if given.source == CONFIG and not (given.method or "").lower().startswith("modelopt"):
        yield "quant_method", f"is {given.method!r}; vLLM wants one that begins with 'modelopt'"
    if given.algorithm not in ALGORITHMS:
        yield "quant_algo", f"is {given.algorithm!r}; vLLM loads {', '.join(ALGORITHMS)}"
    if given.algorithm == MIXED and not given.layers:
        yield "quantized_layers", f"names no layer; {MIXED} wants the algorithm of each"
    for name, algorithm in sorted(given.layers.items() if given.algorithm == MIXED else ()):
        if algorithm not in MIXED_ALGORITHMS:
            known = ", ".join(MIXED_ALGORITHMS)
            yield f"{name}.weight", f"is {algorithm!r}; in {MIXED} vLLM loads {known}"


def _names(export: Export) -> Iterator[Violation]:
    """Every tensor has a place in vLLM's model."""
    for name in sorted(export.tensors):
        if not export.vllm_name(name).startswith(_PARTS):
            yield Violation(
                rule="names",
                tensor=name,
                text=f"is no part of {export.architecture} in vLLM; it looks for "
                f"{', '.join(f'{old}*' for old, _ in _PREFIXES[export.architecture])}",
            )


def _exclusion(export: Export) -> Iterator[Violation]:
    """A linear has scales exactly when the config says that it is quantized."""
    linears = list(export.linears())
    for linear in linears:
        if linear.algorithm is None and linear.is_quantized:
            yield Violation(
                rule="exclusion",
                tensor=linear.weight.name,
                text=f"is quantized ({', '.join((linear.weight.dtype, *linear.scales))}), and "
                f"{_why_plain(export)}",
            )
        elif linear.algorithm is not None and "weight_scale" not in linear.scales:
            yield Violation(
                rule="exclusion",
                tensor=f"{linear.name}.weight_scale",
                text=f"is missing: the weight is {linear.weight.dtype}, and to vLLM it is "
                f"quantized to {linear.algorithm}",
            )
    known = {linear.name for linear in linears}
    for tensor in _language_tensors(export):
        if tensor.kind in _LINEAR_SCALES and tensor.module not in known:
            yield Violation(
                rule="exclusion", tensor=tensor.name, text="is the scale of no linear weight"
            )


def _fusion(export: Export) -> Iterator[Violation]:
    """What vLLM fuses is quantized alike; a fused layer is named after its first linear."""
    for _, members in groupby(sorted(export.linears(), key=_fusion_order), lambda one: one.layer):
        shards = list(members)
        states = {(shard.algorithm, shard.excluded) for shard in shards}
        if len(states) > 1:
            declared = ", ".join(
                f"{last_part(shard.name)} {shard.algorithm or 'unquantized'}"
                f"{' (excluded by its name)' * shard.excluded}"
                for shard in shards
            )
            yield Violation(
                rule="fusion",
                tensor=shards[0].weight.name,
                text=f"is fused with its neighbours, and they are not declared alike: {declared}",
            )


def _scales(export: Export) -> Iterator[Violation]:
    """A quantized weight and its scales have the dtype, shape and values of its algorithm."""
    for linear in export.linears():
        if linear.algorithm is not None and linear.is_quantized:
            problems = _SCALE_RULES.get(linear.algorithm, _unknown_scales)(linear)
            for kind, problem in problems:
                yield Violation(rule="scales", tensor=f"{linear.name}.{kind}", text=problem)


def _kv_cache(export: Export) -> Iterator[Violation]:
    """A quantized cache is FP8, and each attention has its two scales."""
    scheme = export.quantization.kv_cache if export.quantization is not None else None
    if scheme not in (None, "FP8"):
        yield Violation(
            rule="kv-cache",
            tensor="kv_cache_scheme",
            text=f"is {scheme}; vLLM loads float of 8 bits (FP8)",
        )
    for tensor in _language_tensors(export) if export.quantization is None else ():
        if tensor.kind in _KV_SCALES.values():
            yield Violation(rule="kv-cache", tensor=tensor.name, text="is there without a config")
    for linear in export.linears() if scheme == "FP8" else ():
        kind = _KV_SCALES.get(last_part(linear.name))
        if kind is not None:
            name = f"{linear.name}.{kind}"
            for problem in _one_scale(export.tensors.get(name)):
                yield Violation(rule="kv-cache", tensor=name, text=problem)


def _pre_quant_scale(export: Export) -> Iterator[Violation]:
    """No activation is smoothed: vLLM's loader has no place for the factors."""
    for tensor in _language_tensors(export):
        if tensor.kind == "pre_quant_scale":
            yield Violation(rule="pre-quant-scale", tensor=tensor.name, text="is not loaded")


def _vision(export: Export) -> Iterator[Violation]:
    """Nothing in the vision tower is quantized: vLLM always loads it as it is."""
    for name in sorted(export.tensors):
        tensor = export.tensors[name]
        if export.is_vision(tensor) and (tensor.is_scale or tensor.is_quantized_weight):
            yield Violation(
                rule="vision",
                tensor=name,
                text=f"({tensor.dtype}) belongs to a quantized layer of the vision tower, which "
                "vLLM never quantizes",
            )


RULES: Mapping[str, Callable[[Export], Iterator[Violation]]] = {
    "configs": _configs,
    "algorithm": _algorithm,
    "names": _names,
    "exclusion": _exclusion,
    "fusion": _fusion,
    "scales": _scales,
    "kv-cache": _kv_cache,
    "pre-quant-scale": _pre_quant_scale,
    "vision": _vision,
}
"""What vLLM's loader asks of an export, by the name that a violation gives."""


# --- what a scale must be

_Problems = Iterator[tuple[str, str]]


def _per_tensor(linear: Linear) -> _Problems:
    """FP8: an e4m3 weight, one scale for it and one for its input."""
    yield from _float8_weight(linear)
    for kind in ("weight_scale", "input_scale"):
        scale = linear.scales.get(kind)
        if kind == "weight_scale" and scale is None:
            continue  # the exclusion rule says so
        yield from ((kind, problem) for problem in _one_scale(scale))


def _per_channel(linear: Linear) -> _Problems:
    """FP8 per channel and token: an e4m3 weight, a scale per output, none for its input."""
    yield from _float8_weight(linear)
    scale = linear.scales.get("weight_scale")
    if scale is not None:
        outputs = linear.weight.shape[:1]
        for problem in _scale_problems(scale, f"{list(outputs)}", fits=scale.shape == outputs):
            yield "weight_scale", problem
    if "input_scale" in linear.scales:
        yield "input_scale", "is there, and the scale of each token is found as the model runs"


def _unknown_scales(linear: Linear) -> _Problems:
    """Any other algorithm: what is a float is finite; shapes are not known here."""
    for kind, scale in linear.scales.items():
        if scale.dtype == "F32" and not np.isfinite(scale.floats()).all():
            yield kind, "is not finite"


_SCALE_RULES: Mapping[str, Callable[[Linear], _Problems]] = {
    "FP8": _per_tensor,
    "FP8_PER_CHANNEL_PER_TOKEN": _per_channel,
}


def _float8_weight(linear: Linear) -> _Problems:
    if linear.weight.dtype != "F8_E4M3":
        yield "weight", f"is {linear.weight.dtype}; {linear.algorithm} wants F8_E4M3"


def _one_scale(scale: Tensor | None) -> Iterator[str]:
    if scale is None:
        yield "is missing"
    else:
        yield from _scale_problems(scale, "one element", fits=prod(scale.shape) == 1)


def _scale_problems(scale: Tensor, wanted: str, *, fits: bool) -> Iterator[str]:
    """Yield the first thing that is wrong with a scale."""
    if scale.dtype != "F32":
        yield f"is {scale.dtype}; vLLM wants F32"
    elif not fits:
        yield f"has shape {list(scale.shape)}; vLLM wants {wanted}"
    elif (wrong := _first_wrong(scale.floats())) is not None:
        yield f"holds {wrong:g}; a scale is finite and above 0"


def _first_wrong(values: np.ndarray[Any, np.dtype[np.float32]]) -> float | None:
    wrong = values[~(np.isfinite(values) & (values > 0))]
    return float(wrong[0]) if wrong.size else None


# --- names and patterns


class _Declared:
    """What a config declares of a module, by the names and in the order that vLLM uses."""

    def __init__(self, export: Export) -> None:
        given = export.quantization
        self._of_all = given.algorithm if given else None
        self._layers = {export.vllm_name(k): v for k, v in given.layers.items()} if given else {}
        excluded = given.excluded if given else ()
        self.patterns = frozenset(
            export.vllm_name(pattern) for given in excluded for pattern in _split_pattern(given)
        )
        self._globs = [_glob(pattern) for pattern in sorted(self.patterns)]

    def algorithm(self, module: str) -> str | None:
        """Return what ``module`` is quantized to; None if it is not."""
        if self._of_all is None or self._is_excluded(module):
            return None
        if self._of_all != MIXED:
            return self._of_all
        names = (_fused(module), module, *(("lm_head",) if last_part(module) == "lm_head" else ()))
        return next((self._layers[name] for name in names if name in self._layers), None)

    def _is_excluded(self, module: str) -> bool:
        """Match a shard word for word, its fused layer by substring and as a glob."""
        layer = _fused(module)
        return (
            module in self.patterns
            or any(pattern in layer for pattern in self.patterns)
            or any(glob.match(layer) for glob in self._globs)
        )


def _split_pattern(pattern: str) -> tuple[str, ...]:
    """Take ``a.b*`` as ``a.b`` and ``a.b.*``, so that each has a prefix that can be renamed."""
    if len(pattern) >= 2 and pattern.endswith("*") and not pattern.endswith(".*"):
        return (pattern[:-1], f"{pattern[:-1]}.*")
    return (pattern,)


def _glob(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(translate(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(
            f"excluded module {one_line(pattern, LONGEST)!r}: is no pattern ({error}); "
            f"{EXPORT_AGAIN}"
        ) from error


def _fused(module: str) -> str:
    parent, _, last = module.rpartition(".")
    return f"{parent}.{_FUSED[last]}" if last in _FUSED else module


def _fusion_order(linear: Linear) -> tuple[str, int]:
    last = last_part(linear.name)
    return linear.layer, list(_FUSED).index(last) if last in _FUSED else 0


def _is_linear(tensor: Tensor) -> bool:
    is_embedding = tensor.module.endswith("embed_tokens")
    return tensor.kind == "weight" and len(tensor.shape) == 2 and not is_embedding


def _language_tensors(export: Export) -> Iterator[Tensor]:
    for name in sorted(export.tensors):
        if export.vllm_name(name).startswith("language_model."):
            yield export.tensors[name]


def _why_plain(export: Export) -> str:
    if export.quantization is None:
        return "neither config says that anything is"
    if export.quantization.algorithm == MIXED:
        return "quantized_layers does not name it or a pattern excludes it"
    return "the config says that it is not"


def _only(mine: object, other: object) -> str:
    """Show a value; of a set, what the other one lacks."""
    if isinstance(mine, frozenset) and isinstance(other, frozenset):
        return one_line(sorted(mine - other) or "nothing more", LONGEST)
    return one_line(repr(mine), LONGEST)


# --- the two configs


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    given = config.get("architectures")
    named = given[0] if isinstance(given, list) and given else None
    if not isinstance(named, str) or named not in _PREFIXES:
        raise ModelError(
            f"{path}: architecture {one_line(repr(named), LONGEST)} is none whose names in vLLM "
            f"are known here; known: {', '.join(_PREFIXES)}; give an export of one of those"
        )
    return named


def _quantizations(config: Mapping[str, Any], folder: Path) -> Iterator[Quantization]:
    if config.get("quantization_config") is not None:
        path = folder / CONFIG
        inner = entry_of(config, "quantization_config", dict, path)
        yield Quantization(
            source=CONFIG,
            method=entry_of(inner, "quant_method", str, path),
            algorithm=_upper(entry_of(inner, "quant_algo", str, path)),
            excluded=_strings(inner, "ignore", path),
            layers=_layers(inner, path),
            kv_cache=_scheme(inner.get("kv_cache_scheme")),
        )
    path = folder / HF_CONFIG
    if is_there(path.exists) or path.is_symlink():
        inner = entry_of(read_object(path), "quantization", dict, path)
        if inner is None:
            raise malformed(path, "quantization", "an object", None)
        yield Quantization(
            source=HF_CONFIG,
            method=None,
            algorithm=_upper(entry_of(inner, "quant_algo", str, path)),
            excluded=_strings(inner, "exclude_modules", path),
            layers=_layers(inner, path),
            kv_cache=_upper(entry_of(inner, "kv_cache_quant_algo", str, path)),
        )


def _scheme(given: object) -> str | None:
    """Return the name that ``hf_quant_config.json`` has for a cache scheme of ``config.json``."""
    if isinstance(given, dict) and (given.get("type"), given.get("num_bits")) == ("float", 8):
        return "FP8"
    if isinstance(given, str):
        return given.upper()
    return None if given is None else one_line(repr(given), LONGEST)


def _layers(raw: Mapping[str, Any], path: Path) -> Mapping[str, str]:
    given = entry_of(raw, "quantized_layers", dict, path) or {}
    return {name: _layer_algorithm(name, layer, path) for name, layer in given.items()}


def _layer_algorithm(name: str, layer: object, path: Path) -> str:
    algorithm = layer.get("quant_algo") if isinstance(layer, dict) else None
    if not isinstance(algorithm, str):
        raise malformed(path, f"quantized_layers[{name!r}]", "an object with quant_algo", layer)
    return algorithm.upper()


def _strings(raw: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    given = entry_of(raw, key, list, path) or []
    if not all(isinstance(each, str) for each in given):
        raise malformed(path, key, "a list of module names", given)
    return tuple(given)


def _upper(given: str | None) -> str | None:
    return given.upper() if given else None
