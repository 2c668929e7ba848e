"""Words drawn from predictions: how often, and that batches do not matter."""

import pytest
import torch
from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.models.drawn_words import drawn_words

ROWS = ((5, 6, 7), (1, 9, 4))


@pytest.fixture
def logits():
    """Predictions of 7 words; the first is surer than a half of one."""
    found = torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(0))
    found[0, 0, 3] += 3
    return found


def test_words_are_drawn_as_often_as_their_probability_says(logits):
    draws = 20_000
    words = drawn_words(logits, Batch(rows=ROWS), draws)
    assert words.shape == (draws, 2, 2)
    shares = torch.stack([(words == word).double().mean(0) for word in range(7)], dim=-1)
    assert (shares - logits.softmax(-1)).abs().max() < 4 * 0.5 / draws**0.5


def test_pairs_of_draws_take_quantiles_half_a_turn_apart(logits):
    """So a word of at least half the probability is in every pair, a rarer one at most once."""
    words = drawn_words(logits, Batch(rows=ROWS), 500).unflatten(0, (250, 2))
    for word, probability in enumerate(logits.softmax(-1).movedim(-1, 0)):
        counts = (words == word).sum(1)
        assert (counts[:, probability >= 0.5] >= 1).all()
        assert (counts[:, probability < 0.5] <= 1).all()


def test_first_draws_do_not_depend_on_how_many_follow(logits):
    batch = Batch(rows=ROWS)
    assert torch.equal(drawn_words(logits, batch, 6)[:3], drawn_words(logits, batch, 3))


def test_draws_depend_on_the_caption_and_not_on_its_batch(logits):
    together = drawn_words(logits, Batch(rows=ROWS), 3)
    alone = drawn_words(logits[1:], Batch(rows=ROWS[1:]), 3)
    assert torch.equal(together[:, 1:], alone)
    assert not torch.equal(together[:, :1], drawn_words(logits[:1], Batch(rows=((5, 6, 8),)), 3))
