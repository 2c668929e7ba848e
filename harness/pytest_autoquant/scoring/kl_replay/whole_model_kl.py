"""Whole-model KL divergence of the configs that a sweep scored, as manifests record it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.manifests.records.packed_scores import pack_scores
from pytest_autoquant.manifests.records.whole_model import WholeModelKL
from pytest_autoquant.manifests.uncertainty import ratio_error
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.scoring.engine import Failure, Measurement, WholeModelDivergence
from pytest_autoquant.scoring.kl_replay.score_check import checked_captions
from pytest_autoquant.scoring.kl_replay.whole_model import measure_whole_model
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.outcomes import REPLAY


def not_measured(is_wanted: bool, engine: str) -> str | None:
    """Return why the whole model of a case is not to be measured, None if it is.

    Args:
        engine: that scored the case.
    """
    if not is_wanted:
        return "switched off with --aq-no-whole-model-kl"
    if engine != REPLAY:
        return "stock AutoQuant scored the case; whole models are measured with what is replayed"
    return None


class WholeModels:
    """Measures the configs that a sweep scored, all of a size together, once.

    Args:
        model: returns the model, which is used when the first config is asked for.
        all_captions: whether all scored captions are measured, not only as many as are taken to
            check scores: a forward pass per config takes about as long as its scores.
    """

    def __init__(
        self, model: Callable[[], LoadedModel], progress: Progress, *, all_captions: bool
    ) -> None:
        self._model = model
        self._all_captions = all_captions
        self._progress = progress
        self._found: dict[tuple[str, str], WholeModelDivergence | Failure] = {}

    def measure(
        self,
        config: EffectiveConfig,
        measurement: Measurement,
        data: CalibrationData,
        method: str,
        together: Mapping[str, EffectiveConfig],
    ) -> WholeModelKL | str:
        """Return the divergence of a config that was scored, or why there is none.

        Args:
            method: by which it was scored.
            together: by digest, the configs that were scored on the same captions; those that were
                not measured yet are measured with this one.
        """
        measured = data if self._all_captions else checked_captions(data)
        key = _key(config, data, measured)
        if key not in self._found:
            wanted = {config.digest: config, **together}.values()
            self._measure(
                {_key(each, data, measured): each for each in wanted}, measured, measurement.ranges
            )
        outcome = self._found[key]
        if isinstance(outcome, Failure):
            return outcome.reason
        if not all(map(math.isfinite, outcome.per_caption)):
            return "the KL divergence of the whole model is not finite"
        return _record(outcome, measurement, measured, method)

    def _measure(
        self,
        wanted: Mapping[tuple[str, str], EffectiveConfig],
        data: CalibrationData,
        ranges: Mapping[str, Any],
    ) -> None:
        """Measure those of the configs, by key, that were not measured yet."""
        missing = {key: config for key, config in wanted.items() if key not in self._found}
        found = measure_whole_model(
            self._model(), list(missing.values()), data, self._progress, ranges
        )
        self._found |= {key: found[config.digest] for key, config in missing.items()}


def _key(
    config: EffectiveConfig, data: CalibrationData, measured: CalibrationData
) -> tuple[str, str]:
    """Return what equal divergences share: config, and captions.

    Captions that only calibrate matter to static input quantizers alone: of sizes that measure the
    same captions, one measures all other configs for both.
    """
    captions = " ".join(measured.scored_digests)
    is_calibrated = config.input is not None and config.input.needs_calibration
    return (data.tokens_sha256 if is_calibrated else captions, config.digest)


def _record(
    found: WholeModelDivergence, measurement: Measurement, data: CalibrationData, method: str
) -> WholeModelKL:
    tokens, kl = data.scored_tokens, math.fsum(found.per_caption)
    sums = _sums(measurement, data.num_score_samples)
    record = WholeModelKL(
        captions=data.num_score_samples,
        tokens=tokens,
        kl=kl / tokens,
        standard_error=ratio_error(found.per_caption, data.scored_predictions),
        caption_kl=pack_scores(found.per_caption),
        seconds=found.seconds,
    )
    if sums is None:
        return record
    if method == "kl_div":
        ratio, error = _ratio(found.per_caption, sums)
        return replace(record, interaction_ratio=ratio, ratio_standard_error=error)
    ratio, error = _ratio(sums, found.per_caption)
    return replace(record, score_per_kl=ratio, ratio_standard_error=error)


def _ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float | None, float | None]:
    """Return sum / sum over captions and its standard error; None where there is none."""
    divisor = math.fsum(below)
    return (math.fsum(above) / divisor, ratio_error(above, below)) if divisor else (None, None)


def _sums(measurement: Measurement, captions: int) -> list[float] | None:
    """Return the groups' scores by caption, summed over the groups; None if unknown."""
    parts = [group.per_caption for group in measurement.groups if group.per_caption is not None]
    if not parts or len(parts) < len(measurement.groups):
        return None
    sums: list[float] = np.sum([part[:captions] for part in parts], axis=0).tolist()
    return sums if all(map(math.isfinite, sums)) else None
