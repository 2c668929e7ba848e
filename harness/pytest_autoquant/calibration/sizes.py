"""Calibration sizes: how many captions each uses."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SIZES: Mapping[str, int] = MappingProxyType({"small": 16, "medium": 128, "large": 512})
"""Number of calibration captions, by size."""


def size_order(size: str) -> tuple[int, str]:
    """Order sizes from the smallest; those unknown here follow by name."""
    known = list(SIZES)
    return (known.index(size) if size in SIZES else len(known)), size
