"""The ``fisher`` score: its formula in double precision, and what it estimates."""

from dataclasses import replace

import pytest
import torch
from builders import calibration_of, config_of, ignore_progress
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.replay.fisher import DRAWS, EVEN_SAMPLES, LossChangeScorer
from pytest_autoquant.scoring.replay.sweep import SweepResult, plan_sweep, sweep_slice
from pytest_autoquant.scoring.replay.tape import kept_draws
from pytest_autoquant.scoring.replay.token_slices import TokenSlice
from torch import nn

CONFIGS = [
    config_of("wint8_aint8"),
    config_of("wint4_afp16", "w_group64"),
    config_of("wfp16_aint8"),
]
LENGTHS = [2, 4]


@pytest.fixture
def module():
    torch.manual_seed(0)
    widths = {"q_proj": 8, "k_proj": 4, "up_proj": 6}
    linears = {name: nn.Linear(128, width) for name, width in widths.items()}
    return nn.ModuleDict(linears).requires_grad_(False)


@pytest.fixture
def token_slice(module):
    x = torch.randn(6, 128)
    return TokenSlice(
        x=x,
        amax=x.abs().amax(dim=0),
        num_multi_caption_tokens=0,
        caption_lengths=torch.tensor(LENGTHS),
        gradients={
            name: torch.randn(6, kept_draws(name, DRAWS), linear.out_features)
            for name, linear in module.items()
        },
    )


def loss_changes(module, token_slice, config, plan):
    """By linear, gradient times output change summed over channels, ``(tokens, draws)``."""
    weights, inputs = plan.weights[config.weight], plan.inputs[config.input]
    x = token_slice.x
    quantized_x = x if inputs is None else inputs.input(x, token_slice.amax, 0)
    found = {}
    for name, linear in module.items():
        weight = linear.weight if weights is None else weights.weight(linear.weight)
        change = quantized_x.double() @ weight.double().T - x.double() @ linear.weight.double().T
        found[name] = (token_slice.gradients[name].double() * change[:, None]).sum(-1)
    return found


def squared_per_token(*changes):
    parts = sum(each.square() for each in changes).split(LENGTHS)
    return [float(part.sum(0).mean()) for part in parts]


def squared_per_caption(*changes):
    return [float(part.sum(0).square().mean()) for part in sum(changes).split(LENGTHS)]


def part_of(token_slice, rows, lengths):
    gradients = {name: gradient[rows] for name, gradient in token_slice.gradients.items()}
    return replace(
        token_slice,
        x=token_slice.x[rows],
        gradients=gradients,
        caption_lengths=torch.tensor(lengths),
    )


def test_scores_are_those_of_the_formula_also_when_a_slice_cuts_a_caption(module, token_slice):
    samples = len(LENGTHS) * DRAWS
    weight = samples / (samples + EVEN_SAMPLES)
    groups = (("q_proj", "k_proj"), ("up_proj",))
    whole = [token_slice]
    cut = [part_of(token_slice, slice(3), [2, 1]), part_of(token_slice, slice(3, 6), [0, 3])]
    for slices in (whole, cut):
        plan, result = plan_sweep(CONFIGS), SweepResult()
        for each in slices:
            sweep_slice(plan, each, module, result, LossChangeScorer)
        assert not result.failures
        scores = result.by_group(groups)
        for index, config in enumerate(CONFIGS):
            changes = loss_changes(module, token_slice, config, plan)
            attention_scores, up_scores = scores[:, index].tolist()
            attention = changes["q_proj"], changes["k_proj"]
            wanted = [
                (1 - weight) * token + weight * caption
                for token, caption in zip(
                    squared_per_token(*attention), squared_per_caption(*attention), strict=True
                )
            ]
            assert attention_scores == pytest.approx(wanted, rel=1e-4)
            assert up_scores == pytest.approx(squared_per_token(changes["up_proj"]), rel=1e-4)


def test_half_of_the_total_score_estimates_the_divergence(tiny):
    data = calibration_of(tiny)
    kl_div = KLReplayEngine(tiny).score(CONFIGS, data, ignore_progress)
    found = ReplayEngine(tiny, method="fisher").score(CONFIGS, data, ignore_progress)
    for config in CONFIGS:
        total, divergence = (
            sum(group.score for group in outcomes[config.digest].groups)
            for outcomes in (found, kl_div)
        )
        assert total / 2 == pytest.approx(divergence, rel=0.15), config.digest
    assert found[CONFIGS[0].digest].notes == (
        "gradients were drawn from the Fisher information of the predictions 3 times per "
        "caption for q/k/v, 2 times for other linears",
    )


def test_score_does_not_depend_on_the_batches(tiny):
    found = [
        ReplayEngine(tiny, method="fisher").score(
            CONFIGS[:1], calibration_of(tiny, score_size=4, batch_size=size), ignore_progress
        )[CONFIGS[0].digest]
        for size in (1, 32)
    ]
    first, second = ([group.score for group in each.groups] for each in found)
    assert first == pytest.approx(second, rel=1e-4)
