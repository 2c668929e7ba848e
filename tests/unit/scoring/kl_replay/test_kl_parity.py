"""kl_div by replay measures what stock AutoQuant measures.

Stock AutoQuant subtracts log-probabilities in fp32, whose rounding is up to a percent of a small
divergence. Here its loss is computed in fp64, so that the two can be compared closely. The plugin's
options choose model, device and combinations; with ``-s`` it prints the largest difference of each:

    pytest tests/unit/scoring/kl_replay/test_kl_parity.py -m slow
    pytest tests/unit/scoring/kl_replay/test_kl_parity.py -m slow --aq-model qwen3-vl-4b \
        --aq-weights random --aq-pairs wfp8_afp8,wint4_aint8,wint8_aint8
"""

from dataclasses import replace

import pytest
import torch
from builders import calibration_of, config_of, distinct_configs, ignore_progress, model_state
from modelopt.torch.quantization import algorithms
from pytest_autoquant.plugin.pytest_config import plan_of
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.stock.engine import StockEngine
from scipy.stats import spearmanr

#: Largest relative difference of a group's divergence, by the model's dtype.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
SAMPLE = (
    "wfp8_afp8-default",
    "wint8_aint8-recipe_match_channel_token",
    "wint4_aint4-w_group64",
    "wfp16_aint8-a_per_hidden_channel",
)


@pytest.fixture(scope="module")
def model(aq_runner):
    return aq_runner.model


@pytest.fixture
def stock(model, monkeypatch):
    """Stock AutoQuant with its loss in fp64."""
    monkeypatch.setattr(
        algorithms, "_get_log_prob", lambda logits, lm_head=None: logits.double().log_softmax(-1)
    )
    return StockEngine(model, method="kl_div")


def assert_parity(stock, config, replayed, data):
    """Compare every group with stock; return the largest relative difference."""
    (expected,) = stock.score([config], data, ignore_progress).values()
    assert [g.modules for g in replayed.groups] == [g.modules for g in expected.groups]
    assert all(group.quantized for group in replayed.groups)
    ours = torch.tensor([group.score for group in replayed.groups])
    theirs = torch.tensor([group.score for group in expected.groups])
    assert theirs.min() > 0
    largest = float(((ours - theirs).abs() / theirs).max())
    assert spearmanr(ours, theirs).statistic > 0.999
    return largest


def one_caption(model):
    return calibration_of(model, score_size=1)


def captions_of_one_length(model):
    """The largest batch of ``medium``: on a GPU it costs stock AutoQuant as much as one caption.

    In bf16 a divergence of few predictions is mostly rounding.
    """
    data = calibration_of(model, "medium")
    largest = max(data.scored, key=lambda batch: len(batch.rows))
    return replace(data, scored=(largest,), unscored=())


def test_replay_equals_stock(model, stock):
    data = calibration_of(model, score_size=5)
    configs = {name: config_of(*name.split("-")) for name in SAMPLE}
    before = model_state(model.module)
    outcomes = KLReplayEngine(model).score(list(configs.values()), data, ignore_progress)
    assert model_state(model.module) == before
    for name, config in configs.items():
        largest = assert_parity(stock, config, outcomes[config.digest], data)
        assert largest <= TOLERANCE[model.record.dtype], name


@pytest.mark.slow
def test_replay_equals_stock_for_every_combination_that_runs_here(
    model, stock, aq_runner, pytestconfig
):
    data = captions_of_one_length(model) if model.device.type == "cuda" else one_caption(model)
    distinct = distinct_configs(aq_runner, plan_of(pytestconfig))
    configs = [config for _, config in distinct]
    outcomes = KLReplayEngine(model).score(configs, data, ignore_progress)
    for name, config in distinct:
        largest = assert_parity(stock, config, outcomes[config.digest], data)
        print(f"{name}: largest difference of a group {largest:.1e}")
        assert largest <= TOLERANCE[model.record.dtype], name
