"""Support status: whether an effective config can be measured on a device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Exactly one holds for each (effective config, device).

    Attributes:
        SUPPORTED: ModelOpt runs it and every quantizer changes bits.
        NEEDS_CUDA: it fails on this device and runs, or may run, on CUDA.
        UNSUPPORTED: ModelOpt refuses it on every device.
        NO_EFFECT: the overlay changes nothing, or ModelOpt accepts and ignores it.
    """

    SUPPORTED = "supported"
    NEEDS_CUDA = "needs-cuda"
    UNSUPPORTED = "unsupported"
    NO_EFFECT = "no-effect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """A status with its reason: ModelOpt's own words where it refused."""

    status: Status
    reason: str = ""

    @property
    def is_supported(self) -> bool:
        """Whether the case can be measured."""
        return self.status is Status.SUPPORTED

    @property
    def skip_reason(self) -> str:
        """Status and reason on one line, e.g. ``needs-cuda: …``."""
        return f"{self.status.value}: {self.reason}"


SUPPORTED = Support(status=Status.SUPPORTED)
