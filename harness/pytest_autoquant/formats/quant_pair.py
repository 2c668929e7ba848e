"""Quant pairs: a weight dtype and an activation dtype, composed into a ModelOpt base config.

Shapes: a linear's weight is ``(out_features, in_features)`` and its input
``(batch, tokens, in_features)``. ``axis`` and ``block_sizes`` mean what they mean in ModelOpt's
``QuantizerAttributeConfig``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_autoquant.formats.quant_cfg import Entry, is_enabled
from pytest_autoquant.formats.quantizer import QuantizerAttributes

_BLOCK_FORMATS = ("NVFP4", "MXFP4", "MXFP6", "MXFP8", "MXINT8")

#: The patterns under which a config gives attributes to every weight and every input quantizer.
WEIGHT_QUANTIZER = "*weight_quantizer"
INPUT_QUANTIZER = "*input_quantizer"

#: The dtype of weights or activations that stay as the model has them, fp16 or bf16.
UNQUANTIZED = "fp16"

_MXFP4 = QuantizerAttributes.of(
    {"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
)
_NVFP4 = QuantizerAttributes.of(
    {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
)
_FP8 = QuantizerAttributes.of({"num_bits": (4, 3), "axis": None})

#: The weight quantizer of each dtype before an overlay; the keys are the names users write.
WEIGHT_DTYPES: Mapping[str, QuantizerAttributes | None] = MappingProxyType(
    {
        "fp4": _MXFP4,
        "nvfp4": _NVFP4,
        "fp8": _FP8,
        "int8": QuantizerAttributes.of({"num_bits": 8, "axis": 0}),
        "int4": QuantizerAttributes.of({"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}),
        UNQUANTIZED: None,
    }
)

#: The input quantizer of each dtype before an overlay.
ACTIVATION_DTYPES: Mapping[str, QuantizerAttributes | None] = MappingProxyType(
    {
        UNQUANTIZED: None,
        "fp8": _FP8,
        "int8": QuantizerAttributes.of({"num_bits": 8, "axis": None}),
        "int4": QuantizerAttributes.of({"num_bits": 4, "axis": None}),
        "fp4": _MXFP4,
        "nvfp4": _NVFP4,
    }
)

#: The preset of ModelOpt 0.47.0 that equals a composed pair, by (weight, activation).
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


def _off(quantizer_name: str, parent_class: str | None = None) -> Entry:
    scope = {} if parent_class is None else {"parent_class": parent_class}
    return {"quantizer_name": quantizer_name, **scope, "enable": False}


#: What every preset of ModelOpt 0.47.0 leaves unquantized, in its order: heads, routers and gates
#: of mixtures, convolutions, vision towers, embeddings.
EXCLUSIONS: tuple[Entry, ...] = (
    *map(
        _off,
        (
            "*block_sparse_moe.gate*",
            "*linear_attn.conv1d*",
            "*self_attention.conv1d*",
            "*linear_attn.in_proj_a*",
            "*linear_attn.in_proj_b*",
            "*lm_head*",
            "*mixer.conv1d*",
            "*mlp.gate.*",
            "*mlp.shared_expert_gate.*",
            "*output_layer*",
            "*proj_out.*",
            "*router*",
            "mtp.*",
            "output.*",
            "*embed_vision*",
            "*vision_tower*",
            "*visual*",
            "*vision_model*",
            "*multi_modal_projector*",
        ),
    ),
    *(
        _off("*", f"nn.{name}")
        for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LeakyReLU", "Embedding")
    ),
)


def is_excluded(module: str) -> bool:
    """Whether every preset leaves the weight of a module of this name unquantized."""
    return not is_enabled(EXCLUSIONS, f"{module}.weight_quantizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantPair:
    """The dtypes of weights and activations.

    Attributes:
        format_name: the name of an equal ModelOpt preset, else a stable name of this package.
        experimental: marked in every report; so are built-in pairs that equal no preset.
        from_preset: the base config must be read from the installed ModelOpt, because the user
            named a preset that composing (weight, activation) does not give.
    """

    name: str
    weight: str
    activation: str
    format_name: str
    experimental: bool
    from_preset: bool = False


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


def advice(weight: str, activation: str, format_name: str) -> str:
    """Return how to ask for a format that is no preset here, without another format in its place.

    ``fp4`` composes MXFP4; block formats such as MXFP8 are composed from no dtype.
    """
    if "NVFP4" in format_name and "fp4" in (weight, activation):
        pair = ("nvfp4" if dtype == "fp4" else dtype for dtype in (weight, activation))
        names = "w{}_a{}".format(*pair)
        return (
            f"for NVFP4 use the built-in pair {names} (fp4 is MXFP4 here), or give nvfp4 and leave "
            "format_name out"
        )
    composed = composed_format_name(weight, activation)
    if any(block in format_name and block not in composed for block in _BLOCK_FORMATS):
        return "leave the pair out, as no dtype composes this format"
    return f"leave format_name out to compose {composed}"


def compose(weight: str, activation: str) -> dict[str, Any]:
    """Return a fresh ModelOpt config (list form) that quantizes to (weight, activation).

    The same modules are disabled as in every ModelOpt preset. Like ModelOpt's MX presets, an MXFP4
    weight asks for no calibration; anything else for ``max``.
    """
    entries = [
        _off("*"),
        _entry(WEIGHT_QUANTIZER, WEIGHT_DTYPES[weight]),
        _entry(INPUT_QUANTIZER, ACTIVATION_DTYPES[activation]),
        *map(dict, EXCLUSIONS),
    ]
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


def _entry(quantizer_name: str, attributes: QuantizerAttributes | None) -> Entry:
    if attributes is None:
        return _off(quantizer_name)
    return {"quantizer_name": quantizer_name, "cfg": attributes.modelopt()}


def _label(dtype: str) -> str:
    return "MXFP4" if dtype == "fp4" else dtype.upper()
