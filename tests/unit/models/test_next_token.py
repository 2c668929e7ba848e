"""The loss against its formula in double precision."""

import math

import pytest
import torch
from builders import calibration_of
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss


def plain_loss(logits, batch):
    """Sum of -log softmax(logits)[next token], written out."""
    total = 0.0
    for row, ids in zip(logits.double(), batch, strict=True):
        for scores, following in zip(row, ids[1:], strict=True):
            log_sum = math.log(sum(math.exp(float(x)) for x in scores))
            total += log_sum - float(scores[following])
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_summed_cross_entropy(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 11, generator=generator).to(dtype)
    batch = torch.randint(0, 11, (3, 5), generator=generator)
    assert float(next_token_loss(logits, batch)) == pytest.approx(plain_loss(logits, batch))


def test_logits_are_those_of_every_position_but_the_last(tiny):
    batch = tiny.tensor(calibration_of(tiny).scored[-1])
    with torch.no_grad():
        logits = next_token_logits(tiny.module, batch)
        full = tiny.module(input_ids=batch).logits
    assert logits.shape == (batch.shape[0], batch.shape[1] - 1, 2048)
    assert torch.equal(logits, full[:, :-1])
