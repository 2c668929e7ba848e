"""What the weight and the scales of a quantized linear must be, per algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from pytest_autoquant.export.checkpoint_files import FloatArray, Tensor
from pytest_autoquant.export.vllm_rules.exported_model import Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with one tensor or config key.

    Attributes:
        tensor: the tensor's name, present or missing; the key of a config.
        text: predicate of a sentence whose subject is ``tensor``.
    """

    tensor: str
    text: str


def scale_problems(linear: Linear) -> Iterator[Problem]:
    """Yield what is wrong with the dtypes, shapes and values of a quantized linear."""
    rule = _SCALE_RULES.get(linear.algorithm or "", _any_algorithm)
    for kind, text in rule(linear):
        yield Problem(tensor=f"{linear.name}.{kind}", text=text)


def single_scale_problems(scale: Tensor | None) -> Iterator[str]:
    """Yield what is wrong with a scale that must have one element, shape ``()`` or ``(1,)``."""
    if scale is None:
        yield "is missing"
    else:
        yield from _problems(scale, "one element", has_shape=prod(scale.shape) == 1)


#: The last part of a tensor's name and what is wrong with it.
_Problems = Iterator[tuple[str, str]]


def _per_tensor(linear: Linear) -> _Problems:
    """FP8: an E4M3 weight, one scale for the weight and one for the input.

    Source: ``ModelOptFp8LinearMethod.create_weights`` in vLLM 0.32's modelopt.py.
    """
    yield from _float8_weight(linear)
    if "weight_scale" in linear.scales:  # the rule "exclusion" reports a missing one
        for text in single_scale_problems(linear.scales["weight_scale"]):
            yield "weight_scale", text
    for text in single_scale_problems(linear.scales.get("input_scale")):
        yield "input_scale", text


def _per_channel(linear: Linear) -> _Problems:
    """FP8 per channel and token: an E4M3 weight, a scale per output channel, none for the input.

    Source: ``ModelOptFp8PcPtLinearMethod`` in vLLM 0.32's modelopt.py.
    """
    yield from _float8_weight(linear)
    scale = linear.scales.get("weight_scale")
    if scale is not None:
        outputs = linear.weight.shape[:1]
        for text in _problems(scale, f"{list(outputs)}", has_shape=scale.shape == outputs):
            yield "weight_scale", text
    if "input_scale" in linear.scales:
        yield "input_scale", "is present, but vLLM computes a scale per token"


def _any_algorithm(linear: Linear) -> _Problems:
    """Other algorithms: FP32 scales are finite. Shapes are not checked."""
    for kind, scale in linear.scales.items():
        if scale.values is not None and not np.isfinite(scale.values).all():
            yield kind, "is not finite"


_SCALE_RULES: Mapping[str, Callable[[Linear], _Problems]] = {
    "FP8": _per_tensor,
    "FP8_PER_CHANNEL_PER_TOKEN": _per_channel,
}


def _float8_weight(linear: Linear) -> _Problems:
    if linear.weight.dtype != "F8_E4M3":
        yield "weight", f"is {linear.weight.dtype}; {linear.algorithm} needs F8_E4M3"


def _problems(scale: Tensor, shape: str, *, has_shape: bool) -> Iterator[str]:
    """Yield the first thing that is wrong with a scale."""
    if scale.values is None:
        yield f"is {scale.dtype}; vLLM needs F32"
    elif not has_shape:
        yield f"has shape {list(scale.shape)}; vLLM needs {shape}"
    elif (invalid := _first_invalid(scale.values)) is not None:
        yield f"holds {invalid:g}; a scale must be finite and above 0"


def _first_invalid(values: FloatArray) -> float | None:
    invalid = values[~(np.isfinite(values) & (values > 0))]
    return float(invalid[0]) if invalid.size else None
