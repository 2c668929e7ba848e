"""What a tensor holds, from the bytes of its safetensors file: NaN and infinities, a range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]

#: Bytes that are looked at together; a multiple of every dtype's width.
_CHUNK = 1 << 24

#: Per dtype of safetensors, the integers of its width and the exponent bits that are all set in an
#: infinity or NaN. E4M3 has no infinity: exponent and mantissa all set are NaN
#: (Micikevicius et al. 2022, FP8 Formats for Deep Learning, table 1). E8M0 is NaN at 255
#: (OCP Microscaling Formats 1.0, section 5.4).
_NON_FINITE: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
    "F8_E8M0": ("u1", 0xFF),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What a tensor holds.

    Attributes:
        num_non_finite: number of NaN and infinities; 0 for a dtype that has none.
        lowest: least of the other values; None where no range was asked for or no value is left.
        highest: greatest of them.
    """

    num_non_finite: int = 0
    lowest: float | None = None
    highest: float | None = None


def summarize(raw: Bytes, dtype: str, *, with_range: bool) -> Values:
    """Return what a tensor's bytes hold.

    Args:
        raw: the tensor's bytes, flat, little-endian as safetensors stores them.
        dtype: safetensors' name; the range of one that ``_as_floats`` does not know is None.
    """
    non_finite, ranges = 0, list[float]()
    for start in range(0, raw.size, _CHUNK):
        chunk = raw[start : start + _CHUNK]
        non_finite += _count_non_finite(chunk, dtype)
        if with_range:
            ranges += _range(chunk, dtype)
    return Values(
        num_non_finite=non_finite,
        lowest=min(ranges, default=None),
        highest=max(ranges, default=None),
    )


def _count_non_finite(chunk: Bytes, dtype: str) -> int:
    if dtype not in _NON_FINITE:
        return 0
    integers, exponent = _NON_FINITE[dtype]
    values = chunk.view(integers)
    return int(np.count_nonzero((values & values.dtype.type(exponent)) == exponent))


def _range(chunk: Bytes, dtype: str) -> Iterator[float]:
    values = _as_floats(chunk, dtype)
    if values is not None:
        finite = values[np.isfinite(values)]
        if finite.size:
            yield float(finite.min())
            yield float(finite.max())


def _as_floats(chunk: Bytes, dtype: str) -> FloatArray | None:
    """Return the values as numpy has them; bytes (``U8``) as integers."""
    if dtype in ("F64", "F32", "F16"):
        return chunk.view(f"<f{int(dtype[1:]) // 8}")
    if dtype == "BF16":
        return (chunk.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _e4m3_values()[chunk]
    return chunk.astype(np.float32) if dtype == "U8" else None


@cache
def _e4m3_values() -> FloatArray:
    """Return the value of each of the 256 codes: sign, 4 exponent bits with bias 7, 3 mantissa."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(
        exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7)
    )
    signed = np.where(codes & 0x80, -magnitude, magnitude)
    return np.where((codes & 0x7F) == 0x7F, np.nan, signed).astype(np.float32)
