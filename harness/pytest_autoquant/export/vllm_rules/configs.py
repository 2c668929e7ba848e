"""The two files of an export that declare its quantization: config.json, hf_quant_config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_autoquant.export.checkpoint.files import (
    QUOTE_LENGTH,
    entry_of,
    malformed,
    path_exists,
    read_object,
)
from pytest_autoquant.text import one_line

CONFIG = "config.json"
HF_CONFIG = "hf_quant_config.json"

#: The algorithm of a checkpoint whose layers name their own algorithms in ``quantized_layers``.
MIXED = "MIXED_PRECISION"

#: What vLLM loads: ``QUANT_ALGOS`` of vLLM 0.32.0's modelopt.py.
ALGORITHMS = (
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_WO",
    "NVFP4",
    "W4A16_NVFP4",
    "MXFP8",
    MIXED,
)

#: The version since which vLLM takes an algorithm in a layer of a MIXED_PRECISION checkpoint; the
#: others of ``ALGORITHMS`` since 0.24 at the latest. An older version leaves the layer unquantized.
#: Source: ``ModelOptMixedPrecisionConfig.get_quant_method`` of vLLM 0.24.0, 0.25.0, 0.28.0, 0.29.0,
#: 0.30.0 and 0.32.0.
MIXED_SINCE: Mapping[str, str] = MappingProxyType(
    {"MXFP8": "0.25", "FP8_PB_WO": "0.29", "FP8_PER_CHANNEL_PER_TOKEN": "0.30"}
)

#: Number of bits of a KV cache of floats, and what ``hf_quant_config.json`` calls it.
_FLOAT_CACHES = ((8, "FP8"), (4, "NVFP4"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What one of the two files declares.

    Attributes:
        source: name of the file.
        method: ``quant_method``; None in ``hf_quant_config.json``, which has no such key.
        algorithm: ``quant_algo`` in upper case, as vLLM compares it.
        excluded: patterns of module names.
        layers: algorithm of each layer in ``quantized_layers``, upper case.
        group_sizes: every size of blocks that is declared, for all layers or for one.
        kv_cache: ``FP8``, another algorithm's name or description, None if not quantized.
    """

    source: str
    method: str | None
    algorithm: str | None
    excluded: tuple[str, ...]
    layers: Mapping[str, str]
    group_sizes: frozenset[int]
    kv_cache: str | None


def read_quantizations(config: Mapping[str, Any], folder: Path) -> tuple[Quantization, ...]:
    """Return what ``config.json``, which vLLM reads first, and ``hf_quant_config.json`` declare.

    Source: ``ModelOptQuantConfigBase.from_config`` in vLLM 0.32.0's modelopt.py; the order is that
    of ``get_config`` in ``vllm/transformers_utils/config.py``. Stricter: if ``config.json``
    declares MIXED_PRECISION without ``quantized_layers``, vLLM reads ``hf_quant_config.json``
    (``get_quant_config`` in ``vllm/model_executor/model_loader/weight_utils.py``).

    Args:
        config: content of ``config.json``.

    Raises:
        ExportError: an entry has the wrong type.
    """
    return (*_of_config(config, folder / CONFIG), *_of_hf_config(folder / HF_CONFIG))


def _of_config(config: Mapping[str, Any], path: Path) -> Iterator[Quantization]:
    raw = entry_of(config, "quantization_config", dict, path)
    if raw is not None:
        yield Quantization(
            source=CONFIG,
            method=entry_of(raw, "quant_method", str, path),
            algorithm=_upper(entry_of(raw, "quant_algo", str, path)),
            excluded=_strings(raw, "ignore", path),
            layers=_layers(raw, path),
            group_sizes=_group_sizes(raw, path),
            kv_cache=_kv_cache_scheme(raw.get("kv_cache_scheme")),
        )


def _of_hf_config(path: Path) -> Iterator[Quantization]:
    if not path_exists(path):
        return
    raw = entry_of(read_object(path), "quantization", dict, path)
    if raw is None:
        raise malformed(path, "quantization", "an object", None)
    yield Quantization(
        source=HF_CONFIG,
        method=None,
        algorithm=_upper(entry_of(raw, "quant_algo", str, path)),
        excluded=_strings(raw, "exclude_modules", path),
        layers=_layers(raw, path),
        group_sizes=_group_sizes(raw, path),
        kv_cache=_upper(entry_of(raw, "kv_cache_quant_algo", str, path)),
    )


def _kv_cache_scheme(scheme: object) -> str | None:
    """Return what ``hf_quant_config.json`` calls a ``kv_cache_scheme`` of ``config.json``.

    Source: ``get_kv_cache_quant_algo_string`` in ``vllm/utils/torch_utils.py`` of vLLM 0.32.0.
    """
    if isinstance(scheme, dict):
        for bits, name in _FLOAT_CACHES:
            if (scheme.get("type"), scheme.get("num_bits")) == ("float", bits):
                return name
    if isinstance(scheme, str):
        return scheme.upper()
    return None if scheme is None else one_line(repr(scheme), QUOTE_LENGTH)


def _layers(raw: Mapping[str, Any], path: Path) -> Mapping[str, str]:
    layers = entry_of(raw, "quantized_layers", dict, path) or {}
    return {name: _layer_algorithm(name, layer, path) for name, layer in layers.items()}


def _layer_algorithm(name: str, layer: object, path: Path) -> str:
    algorithm = layer.get("quant_algo") if isinstance(layer, dict) else None
    if not isinstance(algorithm, str):
        raise malformed(path, f"quantized_layers[{name!r}]", "an object with quant_algo", layer)
    return algorithm.upper()


def _group_sizes(raw: Mapping[str, Any], path: Path) -> frozenset[int]:
    """Return the sizes of blocks of weights, wherever the config declares one."""
    layers = entry_of(raw, "quantized_layers", dict, path) or {}
    groups = entry_of(raw, "config_groups", dict, path) or {}
    weights = (group.get("weights") for group in groups.values() if isinstance(group, dict))
    parts = (part for part in (raw, *layers.values(), *weights) if isinstance(part, dict))
    found = [part.get("group_size") for part in parts]
    for size in found:
        if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
            raise malformed(path, "group_size", "a whole number", size)
    return frozenset(size for size in found if size is not None)


def _strings(raw: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    names = entry_of(raw, key, list, path) or []
    if not all(isinstance(name, str) for name in names):
        raise malformed(path, key, "a list of module names", names)
    return tuple(names)


def _upper(text: str | None) -> str | None:
    return text.upper() if text else None
