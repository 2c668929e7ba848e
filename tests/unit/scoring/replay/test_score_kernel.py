"""The score kernel against its formula in double precision."""

import math

import pytest
import torch
from pytest_autoquant.scoring.replay.score_kernel import CLAMP, LinearScorer
from torch.nn import functional

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def problem(tokens, width, inner, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, inner), (width, inner), (width,), (tokens, width))
    x, weight, bias, gradient = (torch.randn(*shape, generator=generator) for shape in shapes)
    return [t.to(DEVICE, dtype) for t in (x, weight, bias, gradient)]


def on_device(lengths):
    return torch.tensor(lengths, device=DEVICE)


def scorer_of(plain, gradient, bias, versions):
    return LinearScorer(
        plain, gradient, bias, versions=versions, caption_lengths=on_device([len(plain)])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (37, 129), (700, 520)])
def test_scores_are_those_of_the_formula(dtype, tokens, width):
    x, weight, bias, gradient = problem(tokens, width, 64, dtype)
    plain = functional.linear(x, weight, bias)
    versions = [weight * 1.5, weight * 0.5]
    lengths = [tokens // 3, 0, tokens - tokens // 3]
    scorer = LinearScorer(plain, gradient, bias, versions=2, caption_lengths=on_device(lengths))
    for index, version in enumerate(versions):
        scorer.add(index, x, version)
    for found, version in zip(scorer.per_caption().tolist(), versions, strict=True):
        change = functional.linear(x, version, bias) - plain
        products = (gradient.double() * change.double()).square().sum(1)
        expected = [float(part.sum()) for part in products.split(lengths)]
        assert found == pytest.approx(expected, rel=1e-5 if dtype.itemsize == 4 else 2e-2)


def test_products_are_clamped_as_in_modelopt():
    x, weight, bias, gradient = problem(4, 3, 8, torch.float32)
    plain = functional.linear(x, weight, bias)
    scorer = scorer_of(plain, gradient * 1e30, bias, versions=1)
    scorer.add(0, x, weight * 2)
    assert float(scorer.per_caption()) == pytest.approx(12 * CLAMP**2, rel=1e-6)


def test_equal_versions_score_equal_bits_and_a_version_that_is_not_added_zero():
    x, weight, bias, gradient = problem(300, 520, 64, torch.float32)
    scorer = scorer_of(functional.linear(x, weight, bias), gradient, bias, versions=3)
    scorer.add(0, x, weight * 1.01)
    scorer.add(1, x, weight * 1.01)
    first, second, absent = scorer.per_caption().flatten().tolist()
    assert first == second > absent == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_clamp_hides_neither_nan_nor_infinity(value):
    x, weight, bias, gradient = problem(9, 5, 8, torch.float32)
    plain = functional.linear(x, weight, bias)
    gradient[3, 2] = value
    scorer = scorer_of(plain, gradient, bias, versions=1)
    scorer.add(0, x, weight * 2)
    total = float(scorer.per_caption())
    assert math.isnan(total) if math.isnan(value) else total >= CLAMP**2
