"""Scores by caption, brought from the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.scoring.engine import GroupScore


class CaptionScores:
    """What a sweep scored.

    Args:
        scores: ``(groups, configs, captions)`` in float64, captions in the order of replay.
        groups: the members of each group.
        data: what was replayed.
    """

    def __init__(
        self, scores: torch.Tensor, groups: Sequence[tuple[str, ...]], data: CalibrationData
    ) -> None:
        by_config = scores.transpose(0, 1)
        self._groups = groups
        self._totals = by_config.sum(-1).tolist()
        self._captions = by_config[..., list(data.by_digest)].tolist()

    def of_config(self, config: int, *, quantized: bool) -> tuple[GroupScore, ...]:
        """Return the score of every group under a config, by the config's index in the sweep."""
        totals, captions = self._totals[config], self._captions[config]
        return tuple(
            GroupScore(
                modules=members, score=total, quantized=quantized, per_caption=tuple(per_caption)
            )
            for members, total, per_caption in zip(self._groups, totals, captions, strict=True)
        )
