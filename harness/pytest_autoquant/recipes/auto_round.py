"""The ``layer_config`` of AutoRound 0.15, with the scheme of every other layer.

Schema: ``QuantizationScheme`` in ``auto_round/schemes.py``. Static activations are those of its
presets: FP8 per tensor. AutoRound tunes the rounding of weights, so it computes other values
than those that were measured.
"""

from __future__ import annotations

from typing import Any

from pytest_autoquant.formats.quantizer import QuantizerAttributes
from pytest_autoquant.recipes.decision import Decision, Format
from pytest_autoquant.recipes.refusal import (
    CannotExpressError,
    check_plain,
    express_formats,
    refuse_cut_blocks,
    refuse_experts,
    refuse_nothing,
)

_TOOL = "AutoRound"
_FP8 = (4, 3)

#: What ``group_size`` says beside a number of weights.
_PER_ROW, _PER_TENSOR = -1, 0
_UNQUANTIZED = {"bits": 16, "data_type": "fp", "act_bits": 16, "act_data_type": "fp"}


def recipe(decision: Decision) -> dict[str, Any]:
    """Return the arguments ``scheme`` and ``layer_config``.

    Every linear of the language model is listed; BF16 as the scheme leaves the rest alone.

    Raises:
        UsageError: AutoRound has no form for a format, or for a linear in it; or nothing is
            quantized.
    """
    refuse_nothing(decision, _TOOL)
    refuse_experts(decision, _TOOL)
    refuse_cut_blocks(decision, _TOOL)
    forms = express_formats(decision, _TOOL, form_of)
    layers = {
        module: dict(_UNQUANTIZED if group.format is None else forms[group.format.name])
        for group in decision.groups
        for module in group.modules
    }
    return {"scheme": "BF16", "layer_config": layers}


def form_of(format: Format) -> dict[str, Any]:
    """Return the entry of a linear.

    Raises:
        CannotExpressError: AutoRound has no form for the format.
    """
    check_plain(format)
    if format.weight is None:
        raise CannotExpressError("which leaves the weights in 16 bits")
    return {**_weights(format.weight), **_activations(format.input)}


def _weights(quantizer: QuantizerAttributes) -> dict[str, Any]:
    shared_by = quantizer.scale_shared_by("weight")
    size = {"tensor": _PER_TENSOR, "output channel": _PER_ROW}.get(shared_by)
    if shared_by == "block":
        size = _one_row(quantizer)
    if size is None:
        raise CannotExpressError(f"whose weights have a scale per {shared_by}")
    bits, data_type = _dtype(quantizer, "weights")
    return {"bits": bits, "group_size": size, "sym": True, "data_type": data_type}


def _one_row(quantizer: QuantizerAttributes) -> int | None:
    blocks = quantizer.executed_blocks
    rows = None if blocks is None else blocks.along(-2, 0)
    if rows is not None and rows > 1:
        raise CannotExpressError(f"whose weights share a scale in blocks of {rows} rows")
    return quantizer.block_size


def _dtype(quantizer: QuantizerAttributes, what: str) -> tuple[int, str]:
    if quantizer.is_nvfp4:
        return 4, "nv_fp"
    if quantizer.is_mx and not isinstance(quantizer.num_bits, int):
        return quantizer.width, "mx_fp"
    is_scaled = quantizer.blocks is not None and quantizer.blocks.scale_bits is not None
    if isinstance(quantizer.num_bits, int) and 2 <= quantizer.num_bits <= 8 and not is_scaled:
        return quantizer.num_bits, "int"
    if quantizer.num_bits == _FP8 and not is_scaled:
        return 8, "fp"
    raise CannotExpressError(f"whose {what} have num_bits {quantizer.num_bits}")


def _activations(quantizer: QuantizerAttributes | None) -> dict[str, Any]:
    if quantizer is None:
        return {"act_bits": 16, "act_data_type": "fp"}
    bits, data_type = _dtype(quantizer, "activations")
    shared_by = quantizer.scale_shared_by("input")
    size = {"tensor": _PER_TENSOR, "token": _PER_ROW, "block": quantizer.block_size}.get(shared_by)
    if size is None or (data_type == "int" and shared_by != "token"):
        raise CannotExpressError(f"whose {data_type} activations have a scale per {shared_by}")
    return {
        "act_bits": bits,
        "act_group_size": size,
        "act_sym": True,
        "act_data_type": "nv_fp4_with_static_gs" if quantizer.is_nvfp4 else data_type,
        "act_dynamic": quantizer.is_dynamic,
    }
