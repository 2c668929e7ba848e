"""Progress of a long measurement."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives how far a measurement is."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` batches of ``phase`` are finished."""
