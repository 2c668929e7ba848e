"""The ``recipe.yaml`` of llm-compressor: a QuantizationModifier with a config group per format.

Schema: ``QuantizationScheme`` and ``QuantizationArgs`` in ``compressed_tensors/quantization``
(0.20.0), and ``QuantizationMixin`` of llm-compressor. It calibrates by its own rules: an
integer's scale is the range / (2^bits - 1), ModelOpt's is half of it / (2^(bits - 1) - 1).
"""

from __future__ import annotations

from typing import Any

from pytest_autoquant.formats.quantizer import QuantizedTensor, QuantizerAttributes
from pytest_autoquant.recipes.decision import Decision, Format
from pytest_autoquant.recipes.exclusions import excluded_modules
from pytest_autoquant.recipes.refusal import (
    CannotExpressError,
    check_plain,
    express_formats,
    refuse_cut_blocks,
    refuse_experts,
    refuse_nothing,
)

_TOOL = "llm-compressor"
_FP8 = (4, 3)

#: The largest range of all calibration batches, as ModelOpt's ``max`` takes it.
_CALIBRATED = {"observer": "static_minmax"}

#: dtype of the scales of blocks, by ``num_bits`` of ModelOpt's scales.
_SCALE_DTYPES = {(8, 0): "torch.uint8", (4, 3): "torch.float8_e4m3fn"}


def recipe(decision: Decision) -> dict[str, Any]:
    """Return the recipe; linears that stay in 16 bits are ignored by name, and so is every head.

    Raises:
        UsageError: llm-compressor has no form for a format, or for a linear in it.
    """
    refuse_nothing(decision, _TOOL)
    refuse_experts(decision, _TOOL)
    refuse_cut_blocks(decision, _TOOL)
    schemes = express_formats(decision, _TOOL, scheme_of)
    groups = {
        f"group_{place}": {"targets": list(decision.modules_in(format)), **schemes[format.name]}
        for place, format in enumerate(decision.formats)
    }
    ignored = [*decision.modules_in(None), *(f"re:{each}" for each in excluded_modules())]
    modifier = {"config_groups": groups, "ignore": ignored}
    return {"default_stage": {"default_modifiers": {"QuantizationModifier": modifier}}}


def scheme_of(format: Format) -> dict[str, Any]:
    """Return the weights and input activations of a ``QuantizationScheme``.

    Raises:
        CannotExpressError: it has no form for the format.
    """
    check_plain(format)
    scheme = {}
    if format.weight is not None:
        scheme["weights"] = _args(format.weight, "weight")
    if format.input is not None:
        scheme["input_activations"] = _args(format.input, "input")
    return scheme


def _args(quantizer: QuantizerAttributes, tensor: QuantizedTensor) -> dict[str, Any]:
    bits, kind = _dtype(quantizer, tensor)
    common = {"num_bits": bits, "type": kind, "symmetric": True}
    if quantizer.is_mx or quantizer.is_nvfp4:
        return {**common, **_scaled_blocks(quantizer, tensor)}
    shared_by = quantizer.scale_shared_by(tensor)
    if tensor == "input":
        strategy = {"tensor": "tensor", "batch tensor": "tensor", "token": "token"}.get(shared_by)
        dynamic = quantizer.is_dynamic
    else:
        strategy = {"tensor": "tensor", "output channel": "channel"}.get(shared_by)
        dynamic = False
        if shared_by == "block":
            return {**common, "dynamic": False, **_blocks(quantizer)}
    if strategy is None:
        raise CannotExpressError(f"whose {_noun(tensor)} have a scale per {shared_by}")
    observer = _CALIBRATED if tensor == "input" and not dynamic else {}
    return {**common, "strategy": strategy, "dynamic": dynamic, **observer}


def _dtype(quantizer: QuantizerAttributes, tensor: QuantizedTensor) -> tuple[int, str]:
    if isinstance(quantizer.num_bits, int) and 2 <= quantizer.num_bits <= 8:
        return quantizer.num_bits, "int"
    if quantizer.num_bits == _FP8 or (
        quantizer.num_bits == (2, 1) and (quantizer.is_mx or quantizer.is_nvfp4)
    ):
        return quantizer.width, "float"
    raise CannotExpressError(f"whose {_noun(tensor)} have num_bits {quantizer.num_bits}")


def _scaled_blocks(quantizer: QuantizerAttributes, tensor: QuantizedTensor) -> dict[str, Any]:
    """Return blocks with minifloat scales: MX, and NVFP4 with a scale of the tensor as well."""
    blocks = quantizer.executed_blocks
    scale_bits = None if blocks is None else blocks.scale_bits
    if quantizer.block_size is None or scale_bits not in _SCALE_DTYPES or quantizer.num_bits == 8:
        raise CannotExpressError(f"whose {_noun(tensor)} have blocks with scales of {scale_bits}")
    dynamic: bool | str = tensor == "input"
    if quantizer.is_nvfp4 and dynamic:
        dynamic = "local"
    return {
        "strategy": "tensor_group" if quantizer.is_nvfp4 else "group",
        "group_size": quantizer.block_size,
        "dynamic": dynamic,
        "scale_dtype": _SCALE_DTYPES[scale_bits],
        **(_CALIBRATED if dynamic == "local" else {}),
    }


def _blocks(quantizer: QuantizerAttributes) -> dict[str, Any]:
    blocks = quantizer.executed_blocks
    assert blocks is not None
    rows, columns = blocks.along(-2, 0), blocks.along(-1, 1)
    if blocks.scale_bits is not None or columns is None or quantizer.is_dynamic:
        raise CannotExpressError("whose weights have blocks of another kind")
    if rows is not None and rows > 1:
        if quantizer.num_bits != _FP8:
            raise CannotExpressError(f"whose integers share a scale in blocks of {rows} rows")
        return {"strategy": "block", "block_structure": [rows, columns]}
    return {"strategy": "group", "group_size": columns}


def _noun(tensor: QuantizedTensor) -> str:
    return "weights" if tensor == "weight" else "activations"
