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
        is_converted: whether other floating dtypes keep their values in ``dtype``, to which vLLM's
            ``copy_`` converts all of them.
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
        takes_experts: whether vLLM reads the scales of experts.
        takes_partial_outputs: whether the last block of ``out_features`` may be a smaller one, in a
            linear that is not fused.
    """

    weight: str
    scales: Mapping[str, ScaleFormat]
    discarded: tuple[str, ...] = ()
    values_per_element: int = 1
    block: tuple[int, int] = (1, 1)
    takes_experts: bool = True
    takes_partial_outputs: bool = False

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

#: By algorithm. Source: ``resolve`` in vLLM 0.32.0's modelopt.py, and ``create_weights`` of the
#: classes that it leads to: ``KFp8StaticTensor``, ``KFp8StaticChannel``, ``KFp8Block128``,
#: ``KNvfp4Static``, ``KNvfp4Dynamic``, ``KMxfp8Static``; ``_DropInputScale`` discards. Before 0.30
#: there was a class per algorithm (``ModelOptFp8LinearMethod``) with the same tensors; before 0.29
#: FP8_PB_WO took whole blocks only. Experts: ``FusedMoEMethodCls`` of the configs, of which that of
#: FP8 has one scale per tensor; ``get_quant_method`` of MIXED_PRECISION gives those of FP8_PB_WO to
#: ``Fp8MoEMethod``, which reads ``weight_scale_inv`` only.
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
                    dtype="F32",
                    shape=lambda outputs, inputs: (-(-outputs // 128), 1, inputs // 128, 1),
                )
            },
            block=(128, 128),
            takes_experts=False,
            takes_partial_outputs=True,
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
