"""A quantized linear as ModelOpt's export stores it, and its weight dequantized again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_autoquant.errors import ExportError
from pytest_autoquant.formats.quantizer import BlockSizes, QuantizerAttributes

#: Magnitudes of E2M1 by their three bits; the fourth is the sign. Source: OCP Microscaling Formats
#: (MX) v1.0, section 5.3.3.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

#: An E8M0 scale ``s`` is 2 to the power of ``s`` minus this (OCP MX v1.0, section 5.4.1).
_E8M0_BIAS = 127

#: Largest accepted deviation, relative to the largest weight of the linear or to a scale: stored
#: scales are rounded.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLinear:
    """The tensors of one quantized linear, ``(out_features, in_features)``.

    Layouts are those of ``to_quantized_weight`` in ``modelopt/torch/export/quant_utils.py``.

    Attributes:
        name: the linear, for messages.
        weight: FP8 and INT8 one value per element; INT4 as uint8 ``(out_features / 2,
            in_features)``, two rows per byte; E2M1 as uint8 ``(out_features, in_features / 2)``,
            two columns per byte.
        scale: ``weight_scale``: ``()``, ``(out_features,)``, ``(out_features, blocks)`` or, of
            blocks over both axes, ``(blocks, 1, blocks, 1)``. uint8 holds E8M0.
        scale_2: ``weight_scale_2``, ``()``, which multiplies NVFP4's block scales; else None.
    """

    name: str
    weight: torch.Tensor
    scale: torch.Tensor
    scale_2: torch.Tensor | None = None

    def dequantized(
        self, shape: tuple[int, int], attributes: QuantizerAttributes | None
    ) -> torch.Tensor:
        """Return the weight in fp32.

        Args:
            shape: ``(out_features, in_features)``.
            attributes: of the weight quantizer; they tell the size of blocks.

        Raises:
            ExportError: the stored shapes do not belong to such a weight.
        """
        blocks = attributes.blocks if attributes else None
        factors = _factors(self.scale, shape, blocks)
        values = _values(self.weight, shape)
        if values is None or factors is None:
            raise ExportError(
                f"the export stores {self.name} as {_described(self.weight)} with weight_scale "
                f"{_described(self.scale)}, which cannot be read back as a weight of shape {shape}"
            )
        weight = values * factors
        return weight if self.scale_2 is None else weight * self.scale_2.float()


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _values(weight: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor | None:
    """Return the stored values without their scales in fp32, None for an unknown layout."""
    rows, columns = shape
    if weight.dtype == torch.uint8:
        if tuple(weight.shape) == (rows // 2, columns):
            return _int4(weight)
        return _e2m1(weight) if tuple(weight.shape) == (rows, columns // 2) else None
    is_known = weight.dtype in (torch.float8_e4m3fn, torch.int8)
    return weight.float() if is_known and tuple(weight.shape) == shape else None


def _int4(packed: torch.Tensor) -> torch.Tensor:
    """Unpack two rows per byte, the first in the lower four bits, as signed integers.

    Source: ``pack_int4_in_uint8`` in ``modelopt/torch/export/quant_utils.py``.
    """
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=1).flatten(0, 1).to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles).float()


def _e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Unpack two columns per byte, the first in the lower four bits.

    Source: ``quantize`` in ``modelopt/torch/quantization/qtensor/{nvfp4,mxfp4}_tensor.py``.
    """
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    magnitudes = torch.tensor(_E2M1, device=packed.device)[(codes & 0b111).long()]
    return torch.where(codes >= 0b1000, -magnitudes, magnitudes)


def _factors(
    scale: torch.Tensor, shape: tuple[int, int], blocks: BlockSizes | None
) -> torch.Tensor | None:
    """Return scales that multiply a weight of ``shape``, None for an unknown layout."""
    values = torch.exp2(scale.float() - _E8M0_BIAS) if scale.dtype == torch.uint8 else scale.float()
    if values.dim() < 2:
        is_known = values.numel() == 1 or tuple(values.shape) == shape[:1]
        return values.reshape(-1, 1) if is_known else None
    if blocks is None:
        return None
    if values.dim() == 4 and values.shape[1] == values.shape[3] == 1:
        values = values[:, 0, :, 0]
    height, width = blocks.along(-2, 0) or 1, blocks.along(-1, 1) or 1
    if tuple(values.shape) != (-(-shape[0] // height), -(-shape[1] // width)):
        return None
    spread = values.repeat_interleave(height, dim=0).repeat_interleave(width, dim=1)
    return spread[: shape[0], : shape[1]]


def largest_error(actual: torch.Tensor, expected: torch.Tensor, weight: torch.Tensor) -> float:
    """Return the largest deviation of a dequantized weight, relative to the largest expected one.

    ``expected`` is computed in the dtype of ``weight`` and may differ by its rounding. A weight
    that lies halfway between two values, up to that rounding, may be stored as either. The result
    is NaN if ``actual`` is not finite.
    """
    rounding = 2 * torch.finfo(weight.dtype).eps
    weight, expected = weight.float(), expected.float()
    deviation = (actual - expected).abs() - rounding * expected.abs()
    nearer = ((actual - weight).abs() - (expected - weight).abs()).abs()
    is_wrong = ~(nearer <= rounding * weight.abs())
    wrong = deviation.where(is_wrong, 0.0).clamp(min=0.0).max()
    return float(wrong / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
