"""KL divergence of predictions, against sums of p (log p - log q) in fp64."""

import pytest
import torch
from pytest_autoquant.scoring.kl_replay.divergence import Reference

VOCABULARY = 300


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ]
)
def device(request):
    return torch.device(request.param)


def logits_of(captions, tokens, *, seed):
    generator = torch.Generator().manual_seed(seed)
    return 10 * torch.randn(captions, tokens, VOCABULARY, generator=generator)


def exact(plain, quantized):
    """Sum p (log p - log q) over the predictions of each version, in fp64."""
    versions = quantized.double().log_softmax(-1).reshape(-1, *plain.shape)
    p = plain.double().log_softmax(-1)
    terms = p.exp() * (p - versions)
    return terms.sum((2, 3))


@pytest.mark.parametrize("size", [1e-3, 1e-1, 3.0])
def test_divergence_of_each_version_is_exact(device, size):
    plain = logits_of(2, 5, seed=0)
    changes = torch.stack([size * logits_of(2, 5, seed=seed) / 10 for seed in (1, 2, 3)])
    quantized = (plain + changes).reshape(-1, 5, VOCABULARY)
    actual = Reference(plain.to(device)).divergences(quantized.to(device))
    assert actual.dtype == torch.float64
    expected = exact(plain, quantized)
    torch.testing.assert_close(actual.cpu(), expected, rtol=2e-4, atol=0.0)


def test_shift_of_all_logits_is_no_divergence(device):
    plain = logits_of(1, 4, seed=0)
    actual = Reference(plain.to(device)).divergences((plain + 3.0).to(device))
    assert actual.item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_give_a_divergence_that_is_not(device, broken):
    plain = logits_of(1, 3, seed=0)
    quantized = torch.cat([plain, plain])
    quantized[1, 0, 7] = broken
    (first,), (second,) = Reference(plain.to(device)).divergences(quantized.to(device)).tolist()
    assert first == 0.0
    assert not second < float("inf")


def test_size_of_the_logits_of_a_token():
    assert Reference(logits_of(1, 2, seed=0)).bytes_per_token == 4 * VOCABULARY
    assert Reference(logits_of(1, 2, seed=0).bfloat16()).bytes_per_token == 2 * VOCABULARY
