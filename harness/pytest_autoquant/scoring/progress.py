"""A progress line on a real terminal, also while pytest captures output."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Told where a long measurement stands."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` batches of ``phase`` are finished."""


QUIET_SECONDS = 1.0
REFRESH_SECONDS = 0.25


class ProgressLine:
    """Shows ``phase batch/total elapsed`` once a case has taken a second, then erases it.

    ``write`` puts text on the terminal past pytest's capture.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._label = ""
        self._started = 0.0
        self._shown_at: float | None = None

    def start(self, label: str) -> None:
        """Begin a case."""
        self._label, self._started, self._shown_at = label, time.monotonic(), None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show where the case stands, at most four times a second."""
        now = time.monotonic()
        elapsed = now - self._started
        is_due = self._shown_at is None or now - self._shown_at >= REFRESH_SECONDS
        if elapsed < QUIET_SECONDS or not is_due:
            return
        self._shown_at = now
        self._write(f"\r\x1b[K{self._label}: {phase} {done}/{total}, {elapsed:.0f} s")

    def stop(self) -> None:
        """End a case and erase the line if it was shown."""
        if self._shown_at is not None:
            self._write("\r\x1b[K")
        self._shown_at = None
