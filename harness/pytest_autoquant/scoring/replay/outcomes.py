"""What a replay hands back: a measurement of every config that did not fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_autoquant.scoring.caption_scores import CaptionScores
from pytest_autoquant.scoring.engine import Failure, Measurement, Outcomes
from pytest_autoquant.scoring.replay.sweep import SweepPlan
from pytest_autoquant.scoring.signal import Signal

#: Name of both replay engines.
REPLAY = "replay"


def replay_outcomes(
    plan: SweepPlan,
    scores: CaptionScores,
    failures: Mapping[int, Failure],
    *,
    timing: Mapping[str, float],
    peak_cuda_bytes: int | None,
    signal: Signal,
    ranges: Mapping[str, Any],
    notes: tuple[str, ...] = (),
    expert_tokens: Mapping[str, Sequence[int]] | None = None,
) -> Outcomes:
    """Return the outcome of each config of a sweep, by the config's digest.

    Args:
        failures: by index of the config.
        timing: seconds by phase, of the whole sweep.
        ranges: see ``Measurement``, as for ``expert_tokens``.
    """
    return {
        config.digest: failures.get(index)
        or Measurement(
            engine=REPLAY,
            groups=scores.of_config(index, quantized=plan.is_enabled(config)),
            quantizers=plan.descriptions(config),
            timing=timing,
            peak_cuda_bytes=peak_cuda_bytes,
            signal=signal,
            ranges=ranges,
            notes=notes,
            expert_tokens=expert_tokens,
        )
        for index, config in enumerate(plan.configs)
    }
