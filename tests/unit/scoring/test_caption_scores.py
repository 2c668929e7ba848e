"""Each engine's score by caption is the score of that caption alone."""

from dataclasses import replace

import numpy as np
import pytest
from builders import calibration_of, config_of, covered, ignore_progress
from pytest_autoquant.calibration.batches import Batch, caption_digest
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.replay.engine import ReplayEngine

#: Without inputs, so that a caption's score does not depend on the other captions' ranges.
WEIGHT_ONLY = config_of("wint4_afp16", "w_group64")


@pytest.mark.parametrize("engine", [ReplayEngine, KLReplayEngine])
def test_score_by_caption_is_that_of_the_caption_alone(tiny, engine):
    data = calibration_of(tiny, score_size=6)
    whole = engine(tiny).score([WEIGHT_ONLY], data, ignore_progress)[WEIGHT_ONLY.digest]
    rows = sorted(data.replayed_captions, key=caption_digest)
    for index, row in enumerate(rows):
        only = replace(data, scored=(Batch(rows=(row,)),), unscored=())
        alone = engine(tiny).score([WEIGHT_ONLY], only, ignore_progress)[WEIGHT_ONLY.digest]
        for group, expected in zip(whole.groups, alone.groups, strict=True):
            assert group.per_caption[index] == pytest.approx(expected.score, rel=1e-5)
    for group in whole.groups:
        assert sum(group.per_caption) == pytest.approx(group.score, rel=1e-12)
    assert data.scored_predictions == tuple(len(row) - 1 for row in rows)


def test_captions_keep_their_order_when_batches_are_split(tiny):
    data = calibration_of(tiny, score_size=8)
    whole, split = (
        ReplayEngine(tiny).score([WEIGHT_ONLY], each, ignore_progress)[WEIGHT_ONLY.digest]
        for each in (data, data.split(12))
    )
    for one, other in zip(whole.groups, split.groups, strict=True):
        assert one.per_caption == pytest.approx(other.per_caption, rel=1e-4)
    assert data.split(12).scored_digests == data.scored_digests


def test_intervals_cover_the_built_in_captions(tiny):
    """Of all 512 captions as the population, samples as large as small and medium are drawn."""
    data = calibration_of(tiny, "large", score_size=512)
    measured = ReplayEngine(tiny).score([WEIGHT_ONLY], data, ignore_progress)[WEIGHT_ONLY.digest]
    scores = np.array([group.per_caption for group in measured.groups])
    for count in (16, 128):
        in_score, in_rank = covered(scores, np.array(data.scored_predictions), count)
        assert 0.90 <= in_score <= 0.99
        assert in_rank.mean() >= 0.95
        assert in_rank.min() >= 0.85
