"""Quant pairs: a weight dtype and an activation dtype, composed into a ModelOpt base config.

Shapes: a linear's weight is ``(out_features, in_features)`` and its input
``(batch, tokens, in_features)``. ``axis`` and ``block_sizes`` mean what they mean in ModelOpt's
``QuantizerAttributeConfig``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

WEIGHT_QUANTIZER = "*weight_quantizer"
INPUT_QUANTIZER = "*input_quantizer"
UNQUANTIZED = "fp16"

_MXFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
_NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}

WEIGHT_DTYPES: Mapping[str, Mapping[str, Any] | None] = MappingProxyType(
    {
        "fp4": _MXFP4,
        "nvfp4": _NVFP4,
        "fp8": {"num_bits": (4, 3), "axis": None},
        "int8": {"num_bits": 8, "axis": 0},
        "int4": {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}},
        UNQUANTIZED: None,
    }
)
ACTIVATION_DTYPES: Mapping[str, Mapping[str, Any] | None] = MappingProxyType(
    {
        UNQUANTIZED: None,
        "fp8": {"num_bits": (4, 3), "axis": None},
        "int8": {"num_bits": 8, "axis": None},
        "int4": {"num_bits": 4, "axis": None},
        "fp4": _MXFP4,
        "nvfp4": _NVFP4,
    }
)

PRESETS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("fp8", "fp8"): "FP8_DEFAULT_CFG",
        ("int8", "int8"): "INT8_DEFAULT_CFG",
        ("int8", "fp16"): "INT8_WEIGHT_ONLY_CFG",
        ("int4", "fp16"): "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
        ("fp4", "fp8"): "W4A8_MXFP4_FP8_CFG",
        ("nvfp4", "fp8"): "W4A8_NVFP4_FP8_CFG",
        ("nvfp4", "fp16"): "W4A16_NVFP4_CFG",
        ("fp4", "fp4"): "MXFP4_DEFAULT_CFG",
        ("nvfp4", "nvfp4"): "NVFP4_DEFAULT_CFG",
    }
)
"""The ModelOpt preset that is the same thing as a composed pair, by (weight, activation)."""

_DISABLED_PATTERNS = ("*lm_head*", "*visual*")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantPair:
    """What the weights and the activations are stored and multiplied in.

    ``format_name`` is a ModelOpt preset where one says the same, else a stable name of our own.
    ``from_preset`` says that the base config must be read from the installed ModelOpt, because
    the user named a preset that composing (weight, activation) does not give.
    """

    name: str
    weight: str
    activation: str
    format_name: str
    experimental: bool
    from_preset: bool = False

    @property
    def is_preset(self) -> bool:
        """Whether ``format_name`` is ModelOpt's name rather than ours."""
        return self.from_preset or PRESETS.get((self.weight, self.activation)) == self.format_name


def composed_format_name(weight: str, activation: str) -> str:
    """Name the format that (weight, activation) composes to, e.g. ``INT4_WEIGHT_INT8_ACT_CFG``."""
    preset = PRESETS.get((weight, activation))
    if preset is not None:
        return preset
    if activation == UNQUANTIZED:
        return f"{_label(weight)}_WEIGHT_ONLY_CFG"
    if weight == UNQUANTIZED:
        return f"{_label(activation)}_ACT_ONLY_CFG"
    return f"{_label(weight)}_WEIGHT_{_label(activation)}_ACT_CFG"


def compose(weight: str, activation: str) -> dict[str, Any]:
    """Return a fresh ModelOpt config (list form) that quantizes to (weight, activation).

    The vision tower and ``lm_head`` are disabled, as in every ModelOpt preset. Like ModelOpt's MX
    presets, an MXFP4 weight asks for no calibration; anything else for ``max``.
    """
    entries: list[dict[str, Any]] = [
        {"quantizer_name": "*", "enable": False},
        _entry(WEIGHT_QUANTIZER, WEIGHT_DTYPES[weight]),
        _entry(INPUT_QUANTIZER, ACTIVATION_DTYPES[activation]),
    ]
    entries += [{"quantizer_name": pattern, "enable": False} for pattern in _DISABLED_PATTERNS]
    return {"quant_cfg": entries, "algorithm": None if weight == "fp4" else "max"}


def builtin_pairs() -> dict[str, QuantPair]:
    """Return the built-in grid by name, in the order tables and reports show it."""
    weights = [name for name in WEIGHT_DTYPES if name != UNQUANTIZED]
    grid = [(w, a) for w in weights for a in (UNQUANTIZED, "fp8", "int8", "int4")]
    grid += [("fp4", "fp4"), ("nvfp4", "nvfp4"), (UNQUANTIZED, "fp8"), (UNQUANTIZED, "int8")]
    return {pair.name: pair for pair in (_builtin(w, a) for w, a in grid)}


def _builtin(weight: str, activation: str) -> QuantPair:
    return QuantPair(
        name=f"w{weight}_a{activation}",
        weight=weight,
        activation=activation,
        format_name=composed_format_name(weight, activation),
        experimental=(weight, activation) not in PRESETS,
    )


def _entry(quantizer_name: str, cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    if cfg is None:
        return {"quantizer_name": quantizer_name, "enable": False}
    return {"quantizer_name": quantizer_name, "cfg": copy.deepcopy(dict(cfg))}


def _label(dtype: str) -> str:
    return "MXFP4" if dtype == "fp4" else dtype.upper()
