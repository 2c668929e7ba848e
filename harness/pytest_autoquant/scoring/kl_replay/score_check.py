"""Does the guess hold? The KL divergence of the groups that were scored by their gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.manifests.records.score_check import (
    GroupDivergence,
    ScoreCheck,
    rank_agreement,
)
from pytest_autoquant.manifests.uncertainty import ratio_error
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.scoring.engine import Engine, Failure, GroupScore, Measurement, Outcomes
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
        engine: makes what measures the divergence, from the ranges of the inputs by linear.
    """

    def __init__(self, engine: Callable[[Mapping[str, Any]], Engine], progress: Progress) -> None:
        self._engine = engine
        self._progress = progress
        self._measured: dict[tuple[str, str], _Measured] = {}

    def check(
        self,
        config: EffectiveConfig,
        measurement: Measurement,
        data: CalibrationData,
        together: Mapping[str, EffectiveConfig],
    ) -> ScoreCheck | str:
        """Return the check of a config's scores, or why they cannot be checked.

        Args:
            together: by digest, the configs that were scored on the same captions; those that were
                not measured yet are measured with this one.
        """
        checked, tokens = checked_captions(data), data.tokens_sha256
        if (tokens, config.digest) not in self._measured:
            wanted = {config.digest: config, **together}
            missing = [c for digest, c in wanted.items() if (tokens, digest) not in self._measured]
            self._measure(tokens, missing, checked, measurement.ranges)
        found, scored = self._measured[tokens, config.digest], measurement.groups
        if isinstance(found.outcome, Failure):
            return found.outcome.reason
        broken = [g.name for g in (*scored, *found.outcome.groups) if not math.isfinite(g.score)]
        if broken:
            count = counted(len(broken), "group")
            return f"score or KL divergence is not finite in {count}: {first_few(broken)}"
        # As the manifest records them, to which the record of the check has to agree.
        scores = {group.name: group.score / data.scored_tokens for group in scored}
        return _score_check(scores, found.outcome.groups, checked, found.seconds)

    def _measure(
        self,
        tokens: str,
        configs: Sequence[EffectiveConfig],
        data: CalibrationData,
        ranges: Mapping[str, Any],
    ) -> None:
        started = time.perf_counter()
        outcomes: Outcomes
        try:
            outcomes = self._engine(ranges).score(configs, data, self._progress)
        except Exception as error:  # whatever it is, the scores that were measured stay
            failure = Failure.of(error)
            outcomes = {config.digest: failure for config in configs}
        seconds = time.perf_counter() - started
        for digest, outcome in outcomes.items():
            self._measured[tokens, digest] = _Measured(outcome=outcome, seconds=seconds)


def _score_check(
    scores: Mapping[str, float],
    groups: Sequence[GroupScore],
    data: CalibrationData,
    seconds: float,
) -> ScoreCheck:
    kl = {group.name: group.score / data.scored_tokens for group in groups}
    spearman, top_ten = rank_agreement(scores, kl)
    predictions = data.scored_predictions
    return ScoreCheck(
        captions=data.num_score_samples,
        tokens=data.scored_tokens,
        spearman=spearman,
        top_ten=top_ten,
        groups={
            group.name: GroupDivergence(
                kl=kl[group.name],
                standard_error=ratio_error(group.per_caption or (), predictions),
            )
            for group in groups
        },
        seconds=seconds,
    )
