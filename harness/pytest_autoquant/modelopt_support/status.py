"""What can run: the status of an effective config on a device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Exactly one holds for each (effective config, device)."""

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
        """What a skipped case says, e.g. ``needs-cuda: …``."""
        return f"{self.status.value}: {self.reason}"


SUPPORTED = Support(status=Status.SUPPORTED)
