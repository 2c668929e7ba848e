"""Granularities (overlays): which axis or block shares a scale, static or dynamic, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER
from pytest_autoquant.formats.quantizer import SCALING_TYPES, SPECIAL_BLOCK_KEYS

OVERRIDE_KEYS = ("axis", "block_sizes", "type")

_PER_TOKEN_DYNAMIC = {"type": "dynamic", "block_sizes": {-1: None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Granularity:
    """Overrides of the two quantizer entries of a base config, already normalised.

    ``weight`` and ``input`` are partial ModelOpt quantizer attributes, or None where the overlay
    leaves that quantizer alone.
    """

    name: str
    weight: Mapping[str, Any] | None = None
    input: Mapping[str, Any] | None = None

    @property
    def overrides(self) -> dict[str, Mapping[str, Any]]:
        """The overrides by quantizer pattern, without a quantizer that is left alone."""
        both = {WEIGHT_QUANTIZER: self.weight, INPUT_QUANTIZER: self.input}
        return {pattern: override for pattern, override in both.items() if override is not None}


def builtin_granularities() -> dict[str, Granularity]:
    """Return the built-in overlays by name, in the order tables and reports show them."""
    overlays = (
        Granularity(name="default"),
        Granularity(
            name="recipe_match_channel_token", weight={"axis": 0}, input=_PER_TOKEN_DYNAMIC
        ),
        Granularity(name="w_per_tensor", weight={"axis": None}),
        Granularity(name="w_per_out_channel", weight={"axis": 0}),
        Granularity(name="w_per_in_channel", weight={"axis": 1}),
        Granularity(name="w_group64", weight={"block_sizes": {-1: 64}}),
        Granularity(name="w_group128", weight={"block_sizes": {-1: 128}}),
        Granularity(name="a_per_token_dynamic", input=_PER_TOKEN_DYNAMIC),
        Granularity(name="a_per_tensor_static", input={"type": "static", "axis": None}),
        Granularity(name="a_per_hidden_channel", input={"axis": -1}),
    )
    return {overlay.name: overlay for overlay in overlays}


def parse_overrides(raw: object, *, where: str) -> dict[str, Mapping[str, Any]]:
    """Normalise the ``quant_cfg_overrides`` of an overlay as it stands in YAML.

    String block keys such as ``"-1"`` become integers, ModelOpt's special string keys stay, and
    ``null`` is None.

    Raises:
        UsageError: a quantizer or key that an overlay does not own, ``axis`` together with
            ``block_sizes``, or a value of the wrong kind. The message starts with ``where``.
    """
    if raw is None:
        return {}
    patterns = (WEIGHT_QUANTIZER, INPUT_QUANTIZER)
    overrides = _mapping(raw, f"{where}: quant_cfg_overrides")
    for pattern in overrides:
        if pattern not in patterns:
            raise UsageError(
                f"{where}: overlays touch only {' and '.join(patterns)}, not {pattern!r}"
            )
    return {
        pattern: normalise_override(_mapping(half, f"{where}: {pattern}"), f"{where}: {pattern}")
        for pattern, half in overrides.items()
    }


def normalise_override(override: Mapping[Any, Any], where: str) -> Mapping[str, Any]:
    """Return one quantizer's override with checked keys and integer block axes."""
    for key in override:
        if key not in OVERRIDE_KEYS:
            raise UsageError(
                f"{where}: unknown key {key!r}; an overlay owns only {', '.join(OVERRIDE_KEYS)} "
                "(the dtype belongs to the pair)"
            )
    if "axis" in override and "block_sizes" in override:
        raise UsageError(f"{where}: axis and block_sizes exclude each other; give one")
    if not override:
        raise UsageError(f"{where}: is empty; give {', '.join(OVERRIDE_KEYS)} or leave it out")
    return MappingProxyType({key: _value(key, override[key], where) for key in override})


def _value(key: str, value: Any, where: str) -> Any:
    if key == "axis":
        return _axis(value, where)
    if key == "type":
        return _scaling_type(value, f"{where}: type")
    return _block_sizes(_mapping(value, f"{where}: block_sizes"), where)


def _axis(value: Any, where: str) -> int | tuple[int, ...] | None:
    if value is None or _is_int(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, (list, tuple)) and value and all(_is_int(v) for v in value):
        return tuple(value)
    raise UsageError(f"{where}: axis must be null, an integer or integers, not {value!r}")


def _scaling_type(value: Any, where: str) -> str:
    if value not in SCALING_TYPES:
        raise UsageError(f"{where} must be static or dynamic, not {value!r}")
    return str(value)


def _block_sizes(raw: Mapping[Any, Any], where: str) -> Mapping[int | str, Any]:
    sizes = {_block_key(k, where): _block_value(k, v, where) for k, v in raw.items()}
    if len(sizes) < len(raw):
        raise UsageError(f"{where}: block_sizes gives one axis twice: {list(raw)}")
    if not any(_is_int(key) for key in sizes):
        raise UsageError(f"{where}: block_sizes names no axis; give for example -1: 64")
    return MappingProxyType(sizes)


def _block_key(key: Any, where: str) -> int | str:
    if _is_int(key):
        return int(key)
    if key in SPECIAL_BLOCK_KEYS:
        return str(key)
    if isinstance(key, str) and re.fullmatch(r"-?[0-9]+", key):
        return int(key)
    raise UsageError(
        f"{where}: block_sizes key {key!r} is neither an axis nor one of "
        f"{', '.join(SPECIAL_BLOCK_KEYS)}"
    )


def _block_value(key: Any, value: Any, where: str) -> Any:
    if key == "type":
        return _scaling_type(value, f"{where}: block_sizes type")
    if key in SPECIAL_BLOCK_KEYS:
        return _scale_value(key, value, where)
    if value is None or (_is_int(value) and value > 0):
        return value
    raise UsageError(
        f"{where}: block size {value!r} of axis {key} must be a positive integer or null"
    )


def _scale_value(key: str, value: Any, where: str) -> Any:
    """ModelOpt checks what a scale may be; here it only has to be plain data."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: block_sizes {key} {value!r} is not plain data") from None
    return tuple(value) if isinstance(value, list) else value


def _mapping(value: object, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a mapping, not {type(value).__name__}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
