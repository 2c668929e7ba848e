"""How vLLM expects the weight and the scales of a linear, per algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleFormat:
    """One scale tensor of a linear.

    Attributes:
        shape: from ``(out_features, in_features)``; None for one element, ``()`` or ``(1,)``.
        is_converted: whether vLLM converts other floating dtypes to ``dtype``.
        may_be_zero: whether a block of zeros has the scale 0.
    """

    dtype: str
    shape: Callable[[int, int], Shape] | None = None
    is_converted: bool = True
    may_be_zero: bool = False


_ONE = ScaleFormat(dtype="F32")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFormat:
    """The tensors of a linear of one algorithm.

    Attributes:
        weight: dtype of the weight.
        scales: by the last part of their names.
        discarded: scales that vLLM loads and does not use.
        values_per_element: weights in one element of the weight tensor, along ``in_features``.
        block: ``(out_features, in_features)`` that share a scale; both divide the weight.
        takes_experts: whether vLLM has a kernel for experts.
    """

    weight: str
    scales: Mapping[str, ScaleFormat]
    discarded: tuple[str, ...] = ()
    values_per_element: int = 1
    block: tuple[int, int] = (1, 1)
    takes_experts: bool = True

    def weight_shape(self, shape: Shape) -> Shape:
        """Return the shape of the weight tensor from ``(out_features, in_features)``."""
        return (*shape[:-1], shape[-1] // self.values_per_element)


_NVFP4_SCALES: Mapping[str, ScaleFormat] = {
    "weight_scale": ScaleFormat(
        dtype="F8_E4M3",
        shape=lambda outputs, inputs: (outputs, inputs // 16),
        is_converted=False,
        may_be_zero=True,
    ),
    "weight_scale_2": _ONE,
}

#: By algorithm. Source: the ``create_weights`` methods in vLLM 0.32's modelopt.py:
#: ``ModelOptFp8LinearMethod``, ``ModelOptFp8PcPtLinearMethod``, ``ModelOptFp8PbWoLinearMethod``,
#: ``ModelOptNvFp4LinearMethod``, ``ModelOptNvFp4W4A16LinearMethod``, ``ModelOptMxFp8LinearMethod``.
#: Experts: ``FusedMoEMethodCls`` of the configs; that of FP8 has one scale per tensor.
STORED_FORMATS: Mapping[str, StoredFormat] = MappingProxyType(
    {
        "FP8": StoredFormat(weight="F8_E4M3", scales={"weight_scale": _ONE, "input_scale": _ONE}),
        "FP8_PER_CHANNEL_PER_TOKEN": StoredFormat(
            weight="F8_E4M3",
            scales={"weight_scale": ScaleFormat(dtype="F32", shape=lambda outputs, _: (outputs,))},
            takes_experts=False,
        ),
        "FP8_PB_WO": StoredFormat(
            weight="F8_E4M3",
            scales={
                "weight_scale": ScaleFormat(
                    dtype="F32", shape=lambda outputs, inputs: (outputs // 128, 1, inputs // 128, 1)
                )
            },
            block=(128, 128),
            takes_experts=False,
        ),
        "NVFP4": StoredFormat(
            weight="U8",
            scales={**_NVFP4_SCALES, "input_scale": _ONE},
            values_per_element=2,
            block=(1, 16),
        ),
        "W4A16_NVFP4": StoredFormat(
            weight="U8",
            scales=_NVFP4_SCALES,
            discarded=("input_scale",),
            values_per_element=2,
            block=(1, 16),
        ),
        "MXFP8": StoredFormat(
            weight="F8_E4M3",
            scales={
                "weight_scale": ScaleFormat(
                    dtype="U8",
                    shape=lambda outputs, inputs: (outputs, inputs // 32),
                    is_converted=False,
                    may_be_zero=True,
                )
            },
            block=(1, 32),
        ),
    }
)
