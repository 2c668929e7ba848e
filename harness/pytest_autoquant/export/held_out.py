"""What is measured on the held-out captions of a run, each thing once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.export.apply_scheme import GroupFormat, applied
from pytest_autoquant.export.damage import measure_damage
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.manifests.records.scheme_manifest import MeasuredDamage
from pytest_autoquant.scoring.engine import Failure, Measurement
from pytest_autoquant.scoring.manifest.notes import held_out_notes, length_notes
from pytest_autoquant.scoring.runner import MeasurementRunner

_BATCH_SIZE = 8

#: What identifies a quantized model: the size that calibrates, and the format of each group.
_Key = tuple[str, tuple[tuple[tuple[str, ...], str], ...]]


class HeldOut:
    """Measures schemes on held-out captions; schemes of one run share what they compare with."""

    def __init__(self, bench: MeasurementRunner, captions: CaptionSet) -> None:
        """Tokenize nothing yet."""
        self._bench = bench
        self._captions = captions
        self._damages: dict[_Key, MeasuredDamage] = {}
        self._alone: dict[tuple[str, str], Measurement | Failure] = {}
        self._notes: dict[str, tuple[str, ...]] = {}

    @cached_property
    def data(self) -> CalibrationData:
        """The captions in batches.

        Raises:
            CaptionError: no caption has two tokens.
        """
        return self._bench.held_out(self._captions, batch_size=_BATCH_SIZE)

    def notes(self, size: str) -> tuple[str, ...]:
        """Return what a reader of the damage has to know; warns once of what is not yet said."""
        if size not in self._notes:
            self._notes[size] = held_out_notes(self.data, self._bench.data(size))
            said = length_notes(self.data)
            for note in self._notes[size]:
                if note not in said:
                    self._bench.warn(note)
        return self._notes[size]

    def damage(self, size: str, formats: Sequence[GroupFormat]) -> MeasuredDamage:
        """Quantize the model, measure its damage, and restore the model."""
        known = self._damages.get(_key(size, formats))
        if known is not None:
            return known
        with applied(self._bench.model, formats, self._bench.data(size).batches):
            return self.damage_of_applied(size, formats)

    def damage_of_applied(self, size: str, formats: Sequence[GroupFormat]) -> MeasuredDamage:
        """Measure the damage of formats that are applied to the model."""
        key = _key(size, formats)
        if key not in self._damages:
            batches = self.data.batches
            self._damages[key] = measure_damage(self._bench.model, self._captions, batches)
        return self._damages[key]

    def alone(
        self, size: str, configs: Sequence[EffectiveConfig]
    ) -> dict[str, Measurement | Failure]:
        """Measure each layer group's damage with nothing else quantized, by config digest."""
        missing = [config for config in configs if (size, config.digest) not in self._alone]
        if missing:
            outcomes = self._bench.damage_of_groups(missing, self.data, size)
            self._alone |= {(size, digest): outcome for digest, outcome in outcomes.items()}
        return {config.digest: self._alone[size, config.digest] for config in configs}


def _key(size: str, formats: Sequence[GroupFormat]) -> _Key:
    return size, tuple((group.modules, group.config.digest) for group in formats)
