"""Errors that a user can cause and fix.

Every message says what was wrong, what was given, what is allowed and what to do. The plugin and
the command line print it without a traceback.
"""

from __future__ import annotations


class AutoquantError(Exception):
    """Base of every error whose cause is the input or the machine, not a defect of this package."""


class UsageError(AutoquantError):
    """An option, name, YAML file or marker that is unknown, malformed or contradicts another."""


class CaptionError(AutoquantError):
    """Calibration captions that cannot be read, or none of which can be scored."""


class ModelError(AutoquantError):
    """A model that cannot be found, loaded or measured."""


class AnotherModelError(ModelError):
    """A model whose results would replace, or be mixed with, those of another of the same name."""


class RecordError(AutoquantError):
    """A manifest or summary that cannot be read or is not valid."""


class WriteError(AutoquantError):
    """A file or folder that cannot be written."""


class ExportError(AutoquantError):
    """A checkpoint that cannot be exported, read or verified."""


class MeasurementError(AutoquantError):
    """A measurement that failed.

    Attributes:
        trace: the library's traceback, empty if no library raised.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class NotReplayableError(MeasurementError):
    """A model or captions that the replay engine cannot score and stock AutoQuant can."""
