"""Scores by caption as text: base64 of little-endian fp32, four bytes per caption."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence


def pack_scores(scores: Sequence[float]) -> str:
    """Return scores as text; fp32 keeps seven digits, more than any error bar needs."""
    return base64.b64encode(struct.pack(f"<{len(scores)}f", *scores)).decode("ascii")


def unpack_scores(packed: str, count: int) -> tuple[float, ...]:
    """Return the scores of ``count`` captions.

    Raises:
        ValueError: the text is not base64, or holds another number of scores.
    """
    try:
        return struct.unpack(f"<{count}f", base64.b64decode(packed, validate=True))
    except (binascii.Error, ValueError, struct.error) as error:
        raise ValueError(
            f"must be base64 of {count} numbers of fp32, one per scored caption ({error})"
        ) from None
