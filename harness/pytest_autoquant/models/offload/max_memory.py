"""How much memory the weights of a model may stay in, by device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20}
_UNITS |= {"GIB": 1 << 30, "TB": 10**12, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s*([A-Za-z]*)")
_DEVICE = re.compile(r"cpu|\d{1,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxMemory:
    """Limits in bytes.

    Attributes:
        each: for every device that computes and is not named; None for no such limit.
        by_device: for ``cpu``, the host's memory, or the index of a GPU.
    """

    each: int | None = None
    by_device: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        named = ",".join(f"{device}={size}" for device, size in self.by_device.items())
        return named if self.each is None else str(self.each)

    @classmethod
    def parse(cls, text: str) -> MaxMemory:
        """Read ``4GiB`` or ``0=4GiB,cpu=60GiB``.

        Raises:
            ValueError: neither of them.
        """
        if "=" not in text:
            return cls(each=_bytes(text))
        limits: dict[str, int] = {}
        for part in text.split(","):
            device, _, size = (word.strip() for word in part.partition("="))
            if not _DEVICE.fullmatch(device) or device in limits:
                raise ValueError(text)
            limits[device] = _bytes(size)
        return cls(by_device=limits)

    def of(self, device: str, *, computes: bool) -> int | None:
        """Return the limit of ``cpu`` or of a GPU by its index, None where there is none.

        Args:
            computes: whether weights are used on the device, or only stay there.
        """
        return self.by_device.get(device, self.each if computes else None)


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[match[2].upper()])
