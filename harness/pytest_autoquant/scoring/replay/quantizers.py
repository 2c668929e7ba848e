"""ModelOpt quantizers outside any model, for weights and for recorded inputs.

ModelOpt's ``max`` calibration of a weight takes the weight's own largest magnitudes; a quantizer
without calibrated ranges takes the same ones on the fly, so a fresh quantizer gives the calibrated
bits in one pass. An input quantizer gets its ranges from the recorded largest |X| per channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.formats.quant_pair import WEIGHT_QUANTIZER
from pytest_autoquant.formats.quantizer import QuantizerAttributes
from pytest_autoquant.modelopt_support.private_api import (
    Quantizer,
    reduced_range,
    tensor_quantizer,
)

#: Static input scales that the recorded largest |X| per channel calibrates: one per tensor, or one
#: per channel, the last axis of ``(batch, tokens, in_features)``.
_STATIC_INPUT_SCALES = ("tensor", "input channel")

#: Calibration algorithms that need nothing but ranges.
_REPLAYABLE_ALGORITHMS = (None, "max")


def replay_refusal(config: EffectiveConfig) -> str | None:
    """Return why recorded ranges cannot calibrate a config's quantizers, None if they can."""
    if config.algorithm not in _REPLAYABLE_ALGORITHMS:
        return f"calibration algorithm {config.algorithm} needs more than recorded ranges"
    for pattern, attributes in config.quantizers:
        if attributes is None:
            continue
        reason = _unknown_refusal(attributes) or (
            _weight_refusal(attributes)
            if pattern == WEIGHT_QUANTIZER
            else _input_refusal(attributes)
        )
        if reason is not None:
            return f"{pattern} {reason}"
    return None


class ShapedQuantizers:
    """Quantizes weights or inputs of any shape with one set of attributes.

    A ``TensorQuantizer`` remembers the first shape it sees, so there is one per shape; they are
    built once and used for every layer.
    """

    def __init__(self, attributes: QuantizerAttributes) -> None:
        self._attributes = attributes
        self._by_shape: dict[tuple[int | str, ...], Quantizer] = {}
        self._description: str | None = None

    def weight(self, weight: torch.Tensor, amax: torch.Tensor | None = None) -> torch.Tensor:
        """Return the fake-quantized weight, ``(out_features, in_features)``.

        Args:
            amax: the range of a quantizer with one scale per tensor; None for the weight's own.
        """
        quantizer = self._quantizer(tuple(weight.shape))
        if amax is not None:
            quantizer.amax = amax
        return quantizer(weight.detach())

    def input(self, x: torch.Tensor, amax: torch.Tensor, together: int) -> torch.Tensor:
        """Return the fake-quantized input, ``(tokens, in_features)``.

        A dynamic quantizer fixes its axes by the rank it first sees, hence the batch dimension.

        On CUDA, ModelOpt quantizes FP8 inputs with scales per token by its CUDA kernel when a batch
        holds one caption, and by eager torch when it holds several; the two round ties differently
        (measured on 0.47.0). So each token is quantized in the kind of batch it had in the model.

        Args:
            x: ``(tokens, in_features)``.
            amax: the largest |X| per channel, ``(in_features,)``.
            together: how many of the tokens, the first ones, passed in batches of several captions.
        """
        quantizer = self._quantizer((x.shape[-1],))
        if self._attributes.needs_calibration:
            quantizer.amax = reduced_range(amax[None, None], quantizer.axis)
        if not (x.is_cuda and together and self._attributes.type == "dynamic"):
            return quantizer(x[None])[0]
        several = quantizer(x[:together].expand(2, together, -1))[0]
        if together == len(x):
            return several
        return torch.cat([several, quantizer(x[None, together:])[0]])

    def of_rows(self, place: str, amax: torch.Tensor) -> Quantizer:
        """Return a calibrated quantizer of ``(tokens, in_features)``, as fused experts have it.

        Args:
            place: what sets quantizers of one width apart, which may not share their ranges.
            amax: the largest |X| per channel, ``(in_features,)``.
        """
        quantizer = self._quantizer((place, amax.shape[-1]))
        if self._attributes.needs_calibration:
            quantizer.amax = reduced_range(amax[None], quantizer.axis)
        return quantizer

    @property
    def is_enabled(self) -> bool:
        """Whether ModelOpt's quantizers are on; false before the first use."""
        built = self._by_shape.values()
        return bool(built) and all(quantizer.is_enabled for quantizer in built)

    def describe(self) -> str:
        """Return ModelOpt's own description."""
        return self._description or next(iter(self._by_shape.values())).extra_repr()

    def keep_description(self) -> None:
        """Describe the quantizer from now on as it is now, with the range that it has."""
        if self._by_shape:
            self._description = self.describe()

    def _quantizer(self, shape: tuple[int | str, ...]) -> Quantizer:
        if shape not in self._by_shape:
            self._by_shape[shape] = tensor_quantizer(self._attributes)
        return self._by_shape[shape]


def fake_quantized(
    attributes: QuantizerAttributes, weight: torch.Tensor, amax: torch.Tensor | None
) -> torch.Tensor:
    """Return ModelOpt's fake-quantized weight, ``(out_features, in_features)``.

    Args:
        amax: the range of a quantizer with one scale per tensor; None for the weight's own.
    """
    return ShapedQuantizers(attributes).weight(weight, amax)


def shared_range(
    attributes: QuantizerAttributes | None, weights: Sequence[torch.Tensor]
) -> torch.Tensor | None:
    """Return the largest magnitude of a group's weights, None if its linears have finer ranges.

    As in ModelOpt's export, the first linear decides. NVFP4 has a range per tensor, which scales
    the scales of its blocks. The shape is that of ModelOpt's ``amax`` per tensor: ``()``.
    """
    if attributes is None or not attributes.has_one_range(*weights[0].shape):
        return None
    return torch.stack([weight.abs().amax().float() for weight in weights]).amax()


def _unknown_refusal(attributes: QuantizerAttributes) -> str | None:
    if attributes.is_sequential:
        return "is a sequence of quantizers"
    if attributes.others:
        names = ", ".join(sorted(key for key, _ in attributes.others))
        return f"sets {names}, which the replay engine does not support"
    return None


def _weight_refusal(attributes: QuantizerAttributes) -> str | None:
    blocks = attributes.blocks
    if blocks is not None and blocks.scale_bits and blocks.type != "dynamic":
        return "has static blocks with a global scale that siblings share"
    return None


def _input_refusal(attributes: QuantizerAttributes) -> str | None:
    sizes = attributes.blocks.sizes if attributes.blocks else ()
    if attributes.is_dynamic and {axis for axis, _ in sizes} != {-1}:
        return "computes scales over the tokens of a batch"
    is_static_block = attributes.blocks is None or attributes.blocks.type != "dynamic"
    if is_static_block and any(size is not None for _, size in sizes):
        return "has static blocks, which fix the shape of a batch"
    shared_by = attributes.scale_shared_by("input")
    if not attributes.is_dynamic and (sizes or shared_by not in _STATIC_INPUT_SCALES):
        return "has static scales along other axes than the channels"
    return None
