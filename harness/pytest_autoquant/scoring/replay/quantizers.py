"""One half of a config, weight or input, as ModelOpt quantizers outside any model.

ModelOpt's ``max`` calibration of a weight takes the weight's own largest magnitudes; a quantizer
without calibrated ranges takes the same ones on the fly, so a fresh quantizer gives the calibrated
bits in one pass. An input quantizer gets its ranges from the recorded largest |X| per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pytest_autoquant.formats.effective_config import EffectiveConfig, canonical, is_sequential
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER

_STATIC_INPUT_AXES = (None, -1, 2, (-1,), (2,))
"""Per tensor and per channel: what the recorded largest |X| per channel can calibrate."""

_KNOWN_ATTRIBUTES = {"num_bits", "axis", "block_sizes", "type", "enable", "effective_bits"}


def half_key(config: EffectiveConfig, pattern: str) -> str | None:
    """Return what makes two halves equal, None for a half that is left unquantized."""
    cfg = config.quantizer(pattern)
    return None if cfg is None else repr(canonical(cfg))


def refusal(config: EffectiveConfig, pattern: str) -> str | None:
    """Say why a half cannot be calibrated from recorded ranges alone, None if it can."""
    cfg = config.quantizer(pattern)
    if cfg is None:
        return None
    if is_sequential(config.entries, pattern):
        return f"{pattern} is a sequence of quantizers"
    unknown = sorted(set(cfg) - _KNOWN_ATTRIBUTES)
    if unknown:
        return f"{pattern} sets {', '.join(unknown)}, which the replay engine does not know"
    if pattern == WEIGHT_QUANTIZER:
        return _weight_refusal(cfg)
    return _input_refusal(cfg)


class HalfQuantizer:
    """Quantizes weights or inputs of any shape with one set of attributes.

    ModelOpt's quantizers remember the first shape they see, so there is one per shape; they are
    built once and used for every layer.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self._cfg = {key: value for key, value in cfg.items() if key != "effective_bits"}
        self._by_shape: dict[tuple[int, ...], Any] = {}

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the fake-quantized weight, ``(out_features, in_features)``."""
        return self._quantizer(tuple(weight.shape))(weight.detach())

    def input(self, x: torch.Tensor, amax: torch.Tensor, together: int) -> torch.Tensor:
        """Return the fake-quantized input, ``(tokens, in_features)``.

        ModelOpt fixes the axes of a dynamic quantizer by the rank it sees, hence the batch
        dimension. On CUDA it takes another way for scales per token when a batch holds one caption
        than when it holds several, and some FP8 values then round otherwise: so the tokens of
        either kind are quantized as they are in the model.

        Args:
            x: ``(tokens, in_features)``.
            amax: the largest |X| per channel, ``(in_features,)``.
            together: how many of the tokens, the first ones, passed in batches of several captions.
        """
        quantizer = self._quantizer((x.shape[-1],))
        self._set_range(quantizer, amax[None, None])
        if not (x.is_cuda and together and quantizer._dynamic):
            return quantizer(x[None])[0]
        several = quantizer(x[:together].expand(2, together, -1))[0]
        if together == len(x):
            return several
        return torch.cat([several, quantizer(x[None, together:])[0]])

    @property
    def is_enabled(self) -> bool:
        """Whether ModelOpt's quantizers are on; false before the first use."""
        built = self._by_shape.values()
        return bool(built) and all(quantizer.is_enabled for quantizer in built)

    def describe(self) -> str:
        """Return ModelOpt's own description."""
        return next(iter(self._by_shape.values())).extra_repr()  # type: ignore[no-any-return]

    def _quantizer(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._by_shape:
            from modelopt.torch.quantization.config import QuantizerAttributeConfig
            from modelopt.torch.quantization.nn import TensorQuantizer

            self._by_shape[shape] = TensorQuantizer(QuantizerAttributeConfig(**self._cfg))
        return self._by_shape[shape]

    @staticmethod
    def _set_range(quantizer: Any, amax: torch.Tensor) -> None:
        if quantizer._dynamic or quantizer.is_mx_format:
            return
        from modelopt.torch.quantization.utils import (
            convert_quantization_axis_to_reduce_axis,
            reduce_amax,
        )

        axes = convert_quantization_axis_to_reduce_axis(amax, quantizer.axis)
        quantizer.amax = reduce_amax(amax, axis=axes)


def fake_quantized(
    cfg: Mapping[str, Any], weight: torch.Tensor, amax: torch.Tensor | None
) -> torch.Tensor:
    """Return ModelOpt's fake-quantized weight, ``(out_features, in_features)``.

    Args:
        amax: the range of a quantizer with one scale per tensor; None for the weight's own.
    """
    half = HalfQuantizer(cfg)
    if amax is not None:
        half._quantizer(tuple(weight.shape)).amax = amax
    return half.weight(weight)


def _weight_refusal(cfg: Mapping[str, Any]) -> str | None:
    block_sizes = cfg.get("block_sizes") or {}
    if block_sizes.get("scale_bits") and block_sizes.get("type") != "dynamic":
        return f"{WEIGHT_QUANTIZER} has static blocks with a global scale that siblings share"
    return None


def _input_refusal(cfg: Mapping[str, Any]) -> str | None:
    block_sizes = cfg.get("block_sizes") or {}
    blocks = {axis: size for axis, size in block_sizes.items() if isinstance(axis, int)}
    is_dynamic = "dynamic" in (cfg.get("type"), block_sizes.get("type"))
    if is_dynamic and set(blocks) != {-1}:
        return f"{INPUT_QUANTIZER} computes scales over the tokens of a batch"
    has_sizes = any(size is not None for size in blocks.values())
    if has_sizes and block_sizes.get("type") != "dynamic":
        return f"{INPUT_QUANTIZER} has static blocks, which fix the shape of a batch"
    if not is_dynamic and (blocks or cfg.get("axis") not in _STATIC_INPUT_AXES):
        return f"{INPUT_QUANTIZER} has static scales along other axes than the channels"
    return None
