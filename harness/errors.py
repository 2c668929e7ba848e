"""Errors a user can cause and fix.

Every message says what was wrong, what was given, what is allowed and what to do. The plugin
prints it without a traceback.
"""

from __future__ import annotations


class HarnessError(Exception):
    """Base of every error that is the input's fault rather than the harness's."""


class VocabularyError(HarnessError):
    """An unknown, malformed or conflicting pair, overlay, size or option value."""


class CaptionError(HarnessError):
    """Calibration captions that cannot be read or hold nothing to calibrate on."""


class ModelError(HarnessError):
    """A model that cannot be found, loaded or measured."""


class ManifestError(HarnessError):
    """A manifest that cannot be read, validated or written."""


class MeasurementError(HarnessError):
    """A measurement that could not be made; ``trace`` is the library's traceback, if it raised."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class NotReplayableError(MeasurementError):
    """A model or captions that the replay engine cannot score and stock AutoQuant can."""


def in_words(error: BaseException, most: int = 300) -> str:
    """Return what a library raised on one line: its type, and its message cut to ``most``."""
    message = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {message[:most]}"
