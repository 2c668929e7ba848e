"""Whole-model KL divergence of the configs that a sweep scored, as manifests record it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.manifests.records.packed_scores import pack_scores
from pytest_autoquant.manifests.records.whole_model import WholeModelKL
from pytest_autoquant.manifests.uncertainty import CaptionSample
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
        self._waiting: dict[str, dict[str, EffectiveConfig]] = {}
        self._found: dict[tuple[str, str], WholeModelDivergence | Failure] = {}

    def add(self, tokens: str, configs: Mapping[str, EffectiveConfig]) -> None:
        """Note the configs, by digest, that were scored on the captions of these token ids."""
        self._waiting.setdefault(tokens, {}).update(configs)

    def measure(
        self, config: EffectiveConfig, measurement: Measurement, data: CalibrationData, method: str
    ) -> WholeModelKL | str:
        """Return the divergence of a config that was scored, or why there is none."""
        measured = data if self._all_captions else checked_captions(data)
        if _key(config, data, measured) not in self._found:
            self._measure(config, measurement, data, measured)
        outcome = self._found[_key(config, data, measured)]
        if isinstance(outcome, Failure):
            return outcome.reason
        if not all(map(math.isfinite, outcome.per_caption)):
            return "the KL divergence of the whole model is not finite"
        return _record(outcome, measurement, measured, method)

    def _measure(
        self,
        config: EffectiveConfig,
        measurement: Measurement,
        data: CalibrationData,
        measured: CalibrationData,
    ) -> None:
        waiting = {config.digest: config, **self._waiting.pop(data.tokens_sha256, {})}
        keys = {each.digest: _key(each, data, measured) for each in waiting.values()}
        configs = [each for digest, each in waiting.items() if keys[digest] not in self._found]
        found = measure_whole_model(
            self._model(), configs, measured, self._progress, measurement.ranges
        )
        self._found |= {keys[digest]: outcome for digest, outcome in found.items()}


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
    (error,) = _standard_errors(data, data.scored_predictions, [found.per_caption])
    sums = _sums(measurement, data.num_score_samples)
    ratio, ratio_error = None, None
    if sums is not None and kl > 0:
        ratio = math.fsum(sums) / kl
        (ratio_error,) = _standard_errors(data, found.per_caption, [sums])
    return WholeModelKL(
        captions=data.num_score_samples,
        tokens=tokens,
        kl=kl / tokens,
        standard_error=error,
        interaction_ratio=ratio if method == "kl_div" else None,
        score_per_kl=None if method == "kl_div" else ratio,
        ratio_standard_error=ratio_error,
        caption_kl=pack_scores(found.per_caption),
        seconds=found.seconds,
    )


def _sums(measurement: Measurement, captions: int) -> list[float] | None:
    """Return the groups' scores by caption, summed over the groups; None if unknown."""
    parts = [group.per_caption for group in measurement.groups if group.per_caption is not None]
    if not parts or len(parts) < len(measurement.groups):
        return None
    sums: list[float] = np.sum([part[:captions] for part in parts], axis=0).tolist()
    return sums if all(map(math.isfinite, sums)) else None


def _standard_errors(
    data: CalibrationData, divisors: Sequence[float], scores: Sequence[Sequence[float]]
) -> list[float | None]:
    """Return the jackknife's standard errors of ratios over captions; None where there are none."""
    if len(divisors) < 2:
        return [None] * len(scores)
    sample = CaptionSample(captions=data.scored_digests, predictions=divisors, scores=scores)
    with np.errstate(divide="ignore", invalid="ignore"):  # one caption may hold all the divergence
        errors = sample.standard_errors.tolist()
    return [error if math.isfinite(error) else None for error in errors]
