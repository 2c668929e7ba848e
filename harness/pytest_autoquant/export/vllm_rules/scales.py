"""Whether the weight and the scales of a quantized linear are what its algorithm needs."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from pytest_autoquant.export.checkpoint.files import PLAIN_DTYPES, Tensor, last_part
from pytest_autoquant.export.vllm_rules.exported_model import Linear
from pytest_autoquant.export.vllm_rules.module_names import FUSED
from pytest_autoquant.export.vllm_rules.problem import Problem
from pytest_autoquant.export.vllm_rules.stored_formats import (
    STORED_FORMATS,
    ScaleFormat,
    StoredFormat,
)

_UNSET = "is missing: vLLM loads the checkpoint and computes with a scale that is not set"

#: The code of NaN in E8M0, the block scale of MXFP8 (OCP Microscaling Formats 1.0).
_E8M0_NAN = 255


def scale_problems(linear: Linear) -> Iterator[Problem]:
    """Yield what is wrong with the dtypes, shapes and values of a quantized linear.

    A linear that is stored as another algorithm has one problem only.
    """
    wanted = STORED_FORMATS[linear.algorithm or ""]
    stored = _stored_algorithm(linear)
    if stored is not None and not _is_read_as(stored, linear.algorithm):
        text = f"is stored as {stored}, and the config declares {linear.algorithm}"
        yield Problem(tensor=linear.weight.name, text=text)
    elif linear.weight.dtype != wanted.weight:
        text = f"is {linear.weight.dtype}; {linear.algorithm} needs {wanted.weight}"
        yield Problem(tensor=linear.weight.name, text=text)
    elif not _has_whole_blocks(linear, wanted):
        sizes, blocks = (" x ".join(map(str, two)) for two in (linear.shape, wanted.block))
        text = f"is {sizes}, which the {blocks} blocks of {linear.algorithm} do not divide"
        yield Problem(tensor=linear.weight.name, text=text)
    else:
        yield from _weight_problems(linear, wanted)
        yield from _all_scales(linear, wanted)


def single_scale_problems(name: str, scale: Tensor) -> Iterator[Problem]:
    """Yield what is wrong with a scale of a KV cache: one element, shape ``()`` or ``(1,)``.

    Source: ``KVCacheScaleParameter`` in vLLM 0.32.0's
    ``vllm/model_executor/layers/quantization/kv_cache.py``. Stricter: it takes one element in any
    number of dimensions.
    """
    yield from _scale_problems(name, scale, ScaleFormat(dtype="F32"), ())


def _stored_algorithm(linear: Linear) -> str | None:
    """Return the algorithm that the tensors are of, None if they are of no complete one."""
    scale = linear.scales.get("weight_scale")
    if linear.weight.dtype == "U8" and "weight_scale_2" in linear.scales:
        return "NVFP4" if "input_scale" in linear.scales else "W4A16_NVFP4"
    if linear.weight.dtype != "F8_E4M3" or scale is None:
        return None
    if scale.dtype in ("U8", "F8_E8M0"):
        return "MXFP8"
    if scale.dtype not in PLAIN_DTYPES:
        return None
    if prod(scale.shape) == 1 and len(scale.shape) < 2:
        return "FP8"
    is_per_channel = scale.shape == linear.shape[:1]
    by_dimensions = {1: "FP8_PER_CHANNEL_PER_TOKEN" if is_per_channel else None, 4: "FP8_PB_WO"}
    return by_dimensions.get(len(scale.shape))


def _is_read_as(stored: str, declared: str | None) -> bool:
    """Whether tensors can be taken for those of an algorithm, input scales aside."""
    return stored == declared or {stored, declared} == {"NVFP4", "W4A16_NVFP4"}


def _weight_problems(linear: Linear, wanted: StoredFormat) -> Iterator[Problem]:
    shape, name = wanted.weight_shape(linear.shape), linear.weight.name
    if linear.weight.shape != shape:
        yield Problem(tensor=name, text=shape_text(linear.weight.shape, shape))
    if linear.is_expert and not wanted.takes_experts:
        yield Problem(tensor=name, text=f"is of an expert: vLLM has none in {linear.algorithm}")
    if linear.shape[0] % wanted.block[0]:
        text = f"has {linear.shape[0]} outputs, of which vLLM takes a partial block since 0.29 only"
        yield Problem(tensor=name, text=text, is_tolerated=True)


def _has_whole_blocks(linear: Linear, wanted: StoredFormat) -> bool:
    outputs, inputs = (size % block for size, block in zip(linear.shape, wanted.block, strict=True))
    is_partial_taken = wanted.takes_partial_outputs and last_part(linear.name) not in FUSED
    return not inputs and (not outputs or is_partial_taken)


def shape_text(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Return what is wrong with a tensor's shape."""
    is_transposed = len(shape) == 2 and shape == wanted[::-1]
    hint = ": it is transposed" if is_transposed else ""
    return f"has shape {list(shape)}; vLLM needs {list(wanted)}{hint}"


def _all_scales(linear: Linear, wanted: StoredFormat) -> Iterator[Problem]:
    for kind, scale in wanted.scales.items():
        if kind == "weight_scale" and kind not in linear.scales:
            continue  # the rule "exclusion" reports it
        name = f"{linear.name}.{kind}"
        yield from _scale_problems(name, linear.scales.get(kind), scale, linear.shape)
    for kind, tensor in linear.scales.items():
        if kind in wanted.discarded:
            text = f"is not used: {linear.algorithm} does not quantize inputs"
            yield Problem(tensor=tensor.name, text=text, is_tolerated=True)
        elif kind not in wanted.scales:
            text = f"is present, but {linear.algorithm} has none: vLLM refuses the checkpoint"
            yield Problem(tensor=tensor.name, text=text)


def _scale_problems(
    name: str, scale: Tensor | None, wanted: ScaleFormat, shape: tuple[int, ...]
) -> Iterator[Problem]:
    """Yield what is wrong with a scale. The rule "values" reports NaN and infinities."""
    if scale is None:
        yield Problem(tensor=name, text=_UNSET)
        return
    is_converted = scale.dtype in PLAIN_DTYPES and wanted.is_converted
    if scale.dtype != wanted.dtype and not is_converted:
        yield Problem(tensor=name, text=f"is {scale.dtype}; vLLM needs {wanted.dtype}")
    elif (text := _scale_shape(scale, wanted, shape)) or (text := _scale_range(scale, wanted)):
        yield Problem(tensor=name, text=text)
    elif scale.dtype != wanted.dtype and not scale.values.num_non_finite:
        text = (
            f"is {scale.dtype}: vLLM converts it to {wanted.dtype}, and its values are finite and "
            "above 0; it is right if the weights were quantized with it"
        )
        yield Problem(tensor=name, text=text, is_tolerated=True)


def _scale_shape(scale: Tensor, wanted: ScaleFormat, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with a scale's shape.

    Source: ``PerTensorScaleParameter`` and ``BasevLLMParameter._assert_and_load`` in vLLM 0.32.0's
    ``vllm/model_executor/parameter.py``, which take one element of shape ``()`` or ``(1,)``, and
    assert the shapes of all others.
    """
    if wanted.shape is None:
        is_single = scale.shape in ((), (1,))
        return None if is_single else f"has shape {list(scale.shape)}; vLLM needs one element"
    expected = wanted.shape(*shape)
    if scale.shape == expected:
        return None
    stored, needed = _block(scale.shape, shape), _block(expected, shape)
    if stored is None or needed is None or stored == needed:
        return shape_text(scale.shape, expected)
    return f"is of blocks of {stored}; vLLM needs {needed}"


def _block(scale: tuple[int, ...], shape: tuple[int, ...]) -> str | None:
    """Return how many outputs x inputs share a scale; None if the scale is not one per block."""
    sizes = scale[::2] if len(scale) == 4 else scale
    if len(sizes) != 2 or any(not n or size % n for size, n in zip(shape, sizes, strict=True)):
        return None
    return " x ".join(str(size // n) for size, n in zip(shape, sizes, strict=True))


def _scale_range(scale: Tensor, wanted: ScaleFormat) -> str | None:
    lowest, highest = scale.values.lowest, scale.values.highest
    if lowest is not None and (lowest < 0 or (lowest == 0 and not wanted.may_be_zero)):
        return f"holds {lowest:g}; a scale must be above 0"
    if scale.dtype == "U8" and highest == _E8M0_NAN:
        return f"holds {_E8M0_NAN}, which is NaN in E8M0"
    return None
