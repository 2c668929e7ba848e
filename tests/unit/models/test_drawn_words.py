"""Words drawn from predictions: how often, and that batches do not matter."""

import pytest
import torch
from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.models.drawn_words import drawn_words

ROWS = ((5, 6, 7), (1, 9, 4))


@pytest.fixture
def logits():
    return torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(0))


def test_words_are_drawn_as_often_as_their_probability_says(logits):
    """Evenly spaced quantiles hit an interval of width p at most once more or less than p often."""
    draws = 500
    words = drawn_words(logits, Batch(rows=ROWS), draws)
    assert words.shape == (draws, 2, 2)
    counts = torch.stack([(words == word).sum(0) for word in range(7)], dim=-1)
    assert ((counts - draws * logits.softmax(-1)).abs() <= 1.001).all()


def test_draws_depend_on_the_caption_and_not_on_its_batch(logits):
    together = drawn_words(logits, Batch(rows=ROWS), 3)
    alone = drawn_words(logits[1:], Batch(rows=ROWS[1:]), 3)
    assert torch.equal(together[:, 1:], alone)
    assert not torch.equal(together[:, :1], drawn_words(logits[:1], Batch(rows=((5, 6, 8),)), 3))
