"""The captions of a run as one model reads them: those of the sizes, and held-out ones."""

from __future__ import annotations

from collections.abc import Callable

from pytest_autoquant.calibration.batches import CalibrationData, calibration_data
from pytest_autoquant.calibration.captions import CaptionSet, load_captions
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.scoring.manifest.notes import data_notes, length_notes

Warn = Callable[[str], None]


class RunCaptions:
    """Tokenizes captions, each size once.

    Args:
        model: returns the model.
        warn: told when captions are too few, or cannot be used whole.
    """

    def __init__(self, settings: Settings, model: Callable[[], LoadedModel], warn: Warn) -> None:
        self._settings = settings
        self._model = model
        self._warn = warn
        self._sizes: dict[str, CalibrationData] = {}
        self._tokens: dict[str, str] = {}

    def of_size(self, size: str) -> CalibrationData:
        """Return the batches of a size."""
        if size not in self._sizes:
            captions = load_captions(self._settings.captions, size)
            data = self._data(captions, self._settings.batch_size, self._settings.score_size)
            for note in data_notes(data):
                self._warn(note)
            self._sizes[size] = data
        return self._sizes[size]

    def tokens_of(self, size: str) -> str:
        """Return the digest of a size's token ids."""
        if size not in self._tokens:
            self._tokens[size] = self.of_size(size).tokens_sha256
        return self._tokens[size]

    def held_out(self, captions: CaptionSet, *, batch_size: int) -> CalibrationData:
        """Return the batches of held-out captions, all of which are scored.

        Raises:
            CaptionError: no caption has two tokens.
        """
        data = self._data(captions, batch_size, len(captions.lines))
        for note in length_notes(data):
            self._warn(note)
        return data

    def _data(self, captions: CaptionSet, batch_size: int, score_size: int) -> CalibrationData:
        most, positions = self._settings.max_tokens, self._model().max_positions
        return calibration_data(
            captions,
            self._model().tokenize,
            batch_size=batch_size,
            score_size=score_size,
            max_tokens=min(most, positions or most),
        )
