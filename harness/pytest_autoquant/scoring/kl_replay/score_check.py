"""Does the guess hold? The KL divergence of the groups that were scored by their gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.manifests.records.score_check import (
    GroupDivergence,
    ScoreCheck,
    rank_agreement,
)
from pytest_autoquant.manifests.uncertainty import CaptionSample
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.scoring.engine import Engine, Failure, GroupScore, Measurement
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.outcomes import REPLAY
from pytest_autoquant.text import counted, first_few

#: Most captions that the divergence is measured on, and most predictions: all of size small, if its
#: captions have the usual length. They bound what costs tens of times as much as the scores.
MOST_CAPTIONS = 16
MOST_TOKENS = 1024

#: The size that is checked by default.
_DEFAULT_SIZE = "small"


def not_checked(wanted: bool | None, source: ModelSource, size: str, engine: str) -> str | None:
    """Return why the scores of a case are not to be checked, None if they are.

    Args:
        wanted: ``--aq-check-scores``; None where it is not given.
        engine: that scored the case.
    """
    if wanted is False:
        return "switched off with --aq-no-check-scores"
    if engine != REPLAY:
        return "stock AutoQuant scored the case; only what is replayed is checked"
    if wanted is None and not (source.is_embedded and size == _DEFAULT_SIZE):
        return (
            f"by default only the embedded models are checked, at size {_DEFAULT_SIZE}; "
            "--aq-check-scores checks every case"
        )
    return None


def checked_captions(data: CalibrationData) -> CalibrationData:
    """Return the data with only those captions scored that the divergence is measured on."""
    running = list(accumulate(data.scored_predictions[:MOST_CAPTIONS]))
    within = sum(predictions <= MOST_TOKENS for predictions in running)
    return data.scoring_first(max(1, within))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """The divergences of one config, or why there are none."""

    outcome: Measurement | Failure
    seconds: float


class ScoreChecks:
    """Measures the configs that a gradient sweep scored, all of a size together, once.

    Args:
        engine: makes what measures the divergence, on first use.
    """

    def __init__(self, engine: Callable[[], Engine], progress: Progress) -> None:
        self._engine = engine
        self._progress = progress
        self._waiting: dict[str, dict[str, EffectiveConfig]] = {}
        self._measured: dict[tuple[str, str], _Measured] = {}

    def add(self, tokens: str, configs: Mapping[str, EffectiveConfig]) -> None:
        """Note the configs, by digest, that were scored on the captions of these token ids."""
        self._waiting.setdefault(tokens, {}).update(configs)

    def check(
        self, config: EffectiveConfig, scored: Sequence[GroupScore], data: CalibrationData
    ) -> ScoreCheck | str:
        """Return the check of a config's scores, or why they cannot be checked."""
        checked = checked_captions(data)
        key = data.tokens_sha256, config.digest
        if key not in self._measured:
            self._measure(data.tokens_sha256, config, checked)
        found = self._measured[key]
        if isinstance(found.outcome, Failure):
            return found.outcome.reason
        broken = [g.name for g in (*scored, *found.outcome.groups) if not math.isfinite(g.score)]
        if broken:
            count = counted(len(broken), "group")
            return f"score or KL divergence is not finite in {count}: {first_few(broken)}"
        return _score_check(scored, found, checked)

    def _measure(self, tokens: str, config: EffectiveConfig, data: CalibrationData) -> None:
        configs = {config.digest: config, **self._waiting.pop(tokens, {})}
        started = time.perf_counter()
        try:
            outcomes = self._engine().score(list(configs.values()), data, self._progress)
        except NotReplayableError as error:
            outcomes = dict.fromkeys(configs, Failure.of(error))
        seconds = time.perf_counter() - started
        for digest, outcome in outcomes.items():
            self._measured[tokens, digest] = _Measured(outcome=outcome, seconds=seconds)


def _score_check(
    scored: Sequence[GroupScore], found: _Measured, data: CalibrationData
) -> ScoreCheck:
    assert isinstance(found.outcome, Measurement)
    groups, tokens = found.outcome.groups, data.scored_tokens
    kl = {group.name: group.score / tokens for group in groups}
    spearman, top_ten = rank_agreement({group.name: group.score for group in scored}, kl)
    errors = _standard_errors(groups, data)
    return ScoreCheck(
        captions=data.num_score_samples,
        tokens=tokens,
        spearman=spearman,
        top_ten=top_ten,
        groups={
            name: GroupDivergence(kl=kl[name], standard_error=error)
            for name, error in zip(kl, errors, strict=True)
        },
        seconds=found.seconds,
    )


def _standard_errors(
    groups: Sequence[GroupScore], data: CalibrationData
) -> list[float] | list[None]:
    """Return the jackknife's standard error of each group; None with a single caption."""
    if data.num_score_samples < 2:
        return [None] * len(groups)
    sample = CaptionSample(
        captions=data.scored_digests,
        predictions=data.scored_predictions,
        scores=[group.per_caption or () for group in groups],
    )
    errors: list[float] = sample.standard_errors.tolist()
    return errors
