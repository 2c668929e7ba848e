"""Calibration sizes: how many captions each uses."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Number of calibration captions, by size.
SIZES: Mapping[str, int] = MappingProxyType({"small": 16, "medium": 128, "large": 512})


def size_order(size: str) -> tuple[int, str]:
    """Return the sort key of a size: smallest first, then unknown sizes by name."""
    known = list(SIZES)
    return (known.index(size) if size in SIZES else len(known)), size
