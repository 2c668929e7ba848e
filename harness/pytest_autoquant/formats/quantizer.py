"""Attributes of one ModelOpt quantizer: dtype, which values share a scale, static or dynamic.

Names and defaults are those of ``QuantizerAttributeConfig`` in ModelOpt 0.47.0
(``modelopt/torch/quantization/config.py``).

Shapes: a weight is ``(out_features, in_features)``, an input ``(batch, tokens, in_features)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pytest_autoquant.errors import UsageError

NumBits = int | tuple[int, int] | str
Axis = int | tuple[int, ...] | None
ScalingType = Literal["static", "dynamic"]
QuantizedTensor = Literal["weight", "input"]
ScaleSharing = Literal[
    "nothing",
    "tensor",
    "batch tensor",
    "output channel",
    "input channel",
    "caption",
    "token position",
    "token",
    "block",
    "other axes",
]

#: The two values of ``type``, of a quantizer and of its blocks.
SCALING_TYPES: tuple[ScalingType, ...] = get_args(ScalingType)

#: ModelOpt's defaults. A config that spells one out quantizes to the same bits.
ATTRIBUTE_DEFAULTS: Mapping[str, Any] = {"enable": True, "axis": None, "type": "static"}

#: The key that changes what AutoQuant believes a config costs, and no bits.
COST_ONLY = "effective_bits"

_INTERPRETED = ("num_bits", "axis", "block_sizes", "type", "enable", COST_ONLY)
_AXIS_NAMES: Mapping[QuantizedTensor, tuple[ScaleSharing, ...]] = {
    "weight": ("output channel", "input channel"),
    "input": ("caption", "token position", "input channel"),
}

# E8M0 (MX) and E4M3 (NVFP4) block scales take 8 bits, those of other blocks 16. Scales per channel
# and per tensor are fp32, as ModelOpt exports them (``get_scaling_factor`` in
# ``modelopt/torch/export/quant_utils.py``, 0.47.0); so is the scale of a tensor's E4M3 scales.
_MINIFLOAT_SCALE_BITS = 8
_BLOCK_SCALE_BITS = 16
_FP32_BITS = 32
_MX_SCALE = (8, 0)
_E2M1 = (2, 1)
_E4M3 = (4, 3)

#: The largest E4M3 value (``E4M3_MAX`` in quantization/qtensor/nvfp4_tensor.py of ModelOpt).
E4M3_MAX = 448.0

# ModelOpt's kernel for dynamic E2M1 blocks with E4M3 scales takes no block size: it executes 16
# (``fp4_fake_quant_block`` in ``modelopt/torch/kernels/quantization/gemm``, 0.47.0).
_NVFP4_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSizes:
    """ModelOpt's ``block_sizes``: values in one block share a scale.

    Attributes:
        sizes: (axis, block size) in the order of the axes; size None is the whole axis.
        scale_bits: ``num_bits`` of the scales: (exponent, mantissa) bits of a minifloat or the
            width of an integer; None for a 16-bit scale.
        others: (key, canonical value) of the other keys.
    """

    sizes: tuple[tuple[int, int | None], ...]
    type: ScalingType = "static"
    scale_bits: int | tuple[int, ...] | None = None
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, block_sizes: Mapping[int | str, Any]) -> BlockSizes:
        """Read ModelOpt's mapping."""
        special = {key: value for key, value in block_sizes.items() if isinstance(key, str)}
        return cls(
            sizes=tuple(sorted((k, v) for k, v in block_sizes.items() if isinstance(k, int))),
            type=block_sizes.get("type", "static"),
            scale_bits=_as_tuple(block_sizes.get("scale_bits")),
            others=_others(special, ("type", "scale_bits")),
        )

    @property
    def area(self) -> int | None:
        """Number of weights that share a scale, None if a block spans a whole axis."""
        sizes = [size for _, size in self.sizes if size is not None]
        return math.prod(sizes) if sizes and len(sizes) == len(self.sizes) else None

    def along(self, *axes: int) -> int | None:
        """Return the block size along an axis, which may be counted from either end."""
        return next((size for axis, size in self.sizes if axis in axes), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerAttributes:
    """One quantizer's attributes. Equal attributes quantize to equal bits, so they can be a key.

    Build it with ``QuantizerAttributes.of``. Spelled-out defaults, the order of keys and
    ``effective_bits`` do not count in comparisons; ``modelopt()`` gives them back.

    Attributes:
        num_bits: integer width, or (exponent, mantissa) bits of a float with a sign bit, or the
            name of a custom backend's format.
        blocks: which blocks share a scale; excludes ``axis``.
        others: (key, canonical value) of the attributes that this package does not interpret.
        followers: quantizers that run after this one, in ModelOpt's ``SequentialQuantizer``.
    """

    num_bits: NumBits = 8
    axis: Axis = None
    blocks: BlockSizes | None = None
    type: ScalingType = "static"
    enable: bool = True
    others: tuple[tuple[str, str], ...] = ()
    followers: tuple[QuantizerAttributes, ...] = ()
    _written: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> QuantizerAttributes:
        """Read the ``cfg`` of a ``quant_cfg`` entry: attributes, or a sequence of them."""
        if isinstance(cfg, Mapping):
            return cls._of_one(cfg, ())
        return cls._of_one(cfg[0], tuple(cls.of(follower) for follower in cfg[1:]))

    @classmethod
    def _of_one(
        cls, cfg: Mapping[str, Any], followers: tuple[QuantizerAttributes, ...]
    ) -> QuantizerAttributes:
        blocks = cfg.get("block_sizes")
        return cls(
            num_bits=_as_tuple(cfg.get("num_bits", 8)),
            axis=_as_tuple(cfg.get("axis")),
            blocks=BlockSizes.of(blocks) if blocks else None,
            type=cfg.get("type", "static"),
            enable=cfg.get("enable", True),
            others=_others(cfg, _INTERPRETED),
            followers=followers,
            _written=copy.deepcopy(dict(cfg)),
        )

    def modelopt(self) -> dict[str, Any]:
        """Return a fresh dict of this quantizer's attributes, exactly as they were read."""
        return copy.deepcopy(dict(self._written))

    @property
    def is_sequential(self) -> bool:
        """Whether other quantizers run after this one."""
        return bool(self.followers)

    @property
    def is_mx(self) -> bool:
        """Whether scales are E8M0 and computed per block (``TensorQuantizer.is_mx_format``)."""
        blocks = self.blocks
        return blocks is not None and blocks.type == "dynamic" and blocks.scale_bits == _MX_SCALE

    @property
    def is_nvfp4(self) -> bool:
        """Whether values are E2M1 in blocks with E4M3 scales, which a range per tensor scales."""
        return (
            self.num_bits == _E2M1 and self.blocks is not None and self.blocks.scale_bits == _E4M3
        )

    @property
    def is_block_format(self) -> bool:
        """Whether blocks of one size with minifloat scales make the format, as in MX and NVFP4."""
        blocks = self.blocks
        return blocks is not None and blocks.area is not None and blocks.scale_bits is not None

    def has_one_range(self, out_features: int, in_features: int) -> bool:
        """Whether a weight has one calibrated range: per tensor, or of a single block."""
        if not self.needs_calibration or self.axis is not None:
            return False
        if self.blocks is None or self.blocks.type == "dynamic":
            return True
        rows, columns = self.blocks.along(-2, 0) or 1, self.blocks.along(-1, 1) or in_features
        return rows >= out_features and columns >= in_features

    @property
    def is_dynamic(self) -> bool:
        """Whether scales, or the scales of blocks, are computed from the tensor at hand."""
        return "dynamic" in (self.type, self.blocks.type if self.blocks else None)

    @property
    def needs_calibration(self) -> bool:
        """Whether a range must be calibrated. NVFP4's dynamic blocks need one per tensor."""
        return self.type != "dynamic" and not self.is_mx

    @property
    def executed_blocks(self) -> BlockSizes | None:
        """The blocks that ModelOpt executes: 16 for NVFP4, whatever size is declared."""
        blocks = self.blocks
        if blocks is None or blocks.area is None or blocks.type != "dynamic" or not self.is_nvfp4:
            return blocks
        return replace(blocks, sizes=((-1, _NVFP4_BLOCK),))

    @property
    def block_size(self) -> int | None:
        """Size of executed blocks along ``in_features``, None without such blocks."""
        return self.executed_blocks.along(-1, 1) if self.executed_blocks else None

    def scale_shared_by(self, tensor: QuantizedTensor) -> ScaleSharing:
        """Return which values of a weight or an input share one scale.

        ``batch tensor`` is one scale for the tensor at hand, computed again for each batch;
        ``token`` one scale per row of ``in_features``, likewise.
        """
        if self.blocks and self.blocks.sizes:
            is_row = all(size is None for _, size in self.blocks.sizes)
            return "token" if is_row else "block"
        if self.is_dynamic:
            return "batch tensor"
        if self.axis is None:
            return "tensor"
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        names = _AXIS_NAMES[tensor]
        is_known = len(axes) == 1 and -len(names) <= axes[0] < len(names)
        return names[axes[0]] if is_known else "other axes"

    @property
    def width(self) -> int:
        """Bits of one value, without scales.

        Raises:
            UsageError: ``num_bits`` is the name of a custom format.
        """
        if isinstance(self.num_bits, str):
            raise UsageError(
                f"num_bits {self.num_bits!r} names a format of a custom backend, whose width is "
                "unknown; num_bits must be an integer or (exponent, mantissa) bits"
            )
        return self.num_bits if isinstance(self.num_bits, int) else sum(self.num_bits) + 1

    @property
    def bits_per_weight(self) -> float:
        """Nominal bits per weight, the same for every shape; see ``stored_bits`` for a shape's.

        A block of ``b`` weights adds its scale's bits over ``b``: 8 for an FP8 or E8M0 scale, else
        16. Padding and scales per channel or per tensor are not in it. MXFP4 4.25, NVFP4 4.5, INT4
        in groups of 128 4.125. The same numbers as ModelOpt's presets give as ``effective_bits``.
        """
        area = self.executed_blocks.area if self.executed_blocks else None
        return float(self.width) if area is None else self.width + self._block_scale_bits / area

    def padded_width(self, in_features: int) -> int:
        """Return ``in_features`` rounded up to whole blocks, as ModelOpt pads before it quantizes.

        Source: ``TensorQuantizer._setup_for_blockquant`` in
        ``modelopt/torch/quantization/nn/modules/tensor_quantizer.py``.
        """
        return _round_up(in_features, self.block_size)

    def padded_height(self, out_features: int) -> int:
        """Return ``out_features`` rounded up to whole blocks; see ``padded_width``."""
        blocks = self.executed_blocks
        return _round_up(out_features, blocks.along(-2, 0) if blocks else None)

    def stored_bits(self, out_features: int, in_features: int) -> int:
        """Return the bits of a stored weight: its values and every scale of it.

        A block that the weight's edge cuts has a scale like any other; what ModelOpt pads it with
        is not stored (``FP8QTensor.quantize`` in quantization/qtensor/fp8_tensor.py crops it).
        Scales of blocks take 8 bits (E8M0, E4M3) or 16; those per channel and per tensor, NVFP4's
        second one included, 32. Scales of inputs are not in it.
        """
        rows, columns = self.padded_height(out_features), self.padded_width(in_features)
        scales = sum(each._scales_bits(rows, columns) for each in (self, *self.followers))
        return out_features * in_features * self.width + scales

    def _scales_bits(self, rows: int, columns: int) -> int:
        """Return the bits of the scales of a weight of whole blocks."""
        blocks = self.executed_blocks
        if blocks is not None and blocks.area is not None:
            of_tensor = _FP32_BITS if blocks.scale_bits not in (None, _MX_SCALE) else 0
            return rows * columns // blocks.area * self._block_scale_bits + of_tensor
        if blocks is not None and blocks.sizes:
            return rows * _FP32_BITS
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return math.prod((rows, columns)[axis] for axis in axes if axis is not None) * _FP32_BITS

    @property
    def _block_scale_bits(self) -> int:
        has_minifloat = self.blocks is not None and self.blocks.scale_bits is not None
        return _MINIFLOAT_SCALE_BITS if has_minifloat else _BLOCK_SCALE_BITS


def canonical(value: Any) -> Any:
    """Return a JSON-ready form in which equal meanings are equal: no defaults, sorted keys."""
    if isinstance(value, Mapping):
        kept = {
            str(key): canonical(item)
            for key, item in value.items()
            if key != COST_ONLY
            and not (key in ATTRIBUTE_DEFAULTS and item == ATTRIBUTE_DEFAULTS[key])
        }
        return dict(sorted(kept.items()))
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def _others(cfg: Mapping[Any, Any], interpreted: Sequence[str]) -> tuple[tuple[str, str], ...]:
    others = {key: value for key, value in cfg.items() if key not in interpreted}
    return tuple((key, repr(value)) for key, value in canonical(others).items())


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _round_up(length: int, block: int | None) -> int:
    return length if block is None else -(-length // block) * block
