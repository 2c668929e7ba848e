"""Gradients drawn from predictions: their mean outer product, and on what they depend."""

import pytest
import torch
from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.models.drawn_gradients import drawn_gradients

ROWS = ((5, 6, 7), (1, 9, 4))
WORDS = 70  # more than the bits of one random number


@pytest.fixture
def logits():
    """Predictions of 70 words; the first is almost sure of one."""
    found = torch.randn(2, 2, WORDS, generator=torch.Generator().manual_seed(0)).double()
    found[0, 0, 3] += 12
    return found


def stacked(logits, rows, draws):
    return torch.stack(list(drawn_gradients(logits, Batch(rows=rows), draws)))


def test_outer_product_averages_to_the_fisher_information(logits):
    draws = 8000
    found = stacked(logits, ROWS, draws).flatten(1, 2)
    probability = logits.flatten(0, 1).softmax(-1)
    root = probability.sqrt()
    wanted = probability.diag_embed() - probability[:, :, None] * probability[:, None]
    mean = torch.einsum("dpv,dpw->pvw", found, found) / draws
    error = (mean - wanted) / (root[:, :, None] * root[:, None])
    assert error.abs().max() < 6 / draws**0.5  # 19600 numbers with a deviation of about 1 per draw
    across = torch.einsum("dv,dw->vw", found[:, 1], found[:, 2]) / draws
    assert (across / (root[1, :, None] * root[2])).abs().max() < 6 / draws**0.5
    assert found.sum(-1).abs().max() < 1e-5  # a change that all logits share changes nothing


def test_squares_of_a_sure_prediction_are_as_noisy_as_those_of_a_normal_number(logits):
    """Their variance is 2; of the losses of drawn words it is 1 / (1 - p), 1,400 here."""
    change = torch.zeros(WORDS, dtype=torch.float64)
    change[3] = 1
    squares = (stacked(logits, ROWS, 2000)[:, 0, 0] @ change).square()
    assert (squares / squares.mean()).var() < 2.5


def test_first_draws_do_not_depend_on_how_many_follow(logits):
    assert torch.equal(stacked(logits, ROWS, 6)[:3], stacked(logits, ROWS, 3))


def test_draws_depend_on_the_caption_and_not_on_its_batch(logits):
    together, alone = stacked(logits, ROWS, 3), stacked(logits[1:], ROWS[1:], 3)
    assert torch.equal(together[:, 1:], alone)
    assert not torch.equal(together[:, :1], stacked(logits[:1], ((5, 6, 8),), 3))
