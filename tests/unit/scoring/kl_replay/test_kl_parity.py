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
from pytest_autoquant.models.layers import language_model_linears, other_weighted_modules
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
def stock_of(monkeypatch):
    """Stock AutoQuant of a model, with its loss in fp64."""
    monkeypatch.setattr(
        algorithms, "_get_log_prob", lambda logits, lm_head=None: logits.double().log_softmax(-1)
    )
    return lambda model: StockEngine(model, method="kl_div")


@pytest.fixture
def stock(model, stock_of):
    return stock_of(model)


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


def test_replay_of_a_mixture_equals_stock(mixture, stock_of):
    data = calibration_of(mixture, score_size=5)
    configs = [config_of("wfp8_afp8"), config_of("wint4_aint4", "w_group64")]
    before = model_state(mixture.module)
    outcomes = KLReplayEngine(mixture).score(configs, data, ignore_progress)
    assert model_state(mixture.module) == before
    for config in configs:
        largest = assert_parity(stock_of(mixture), config, outcomes[config.digest], data)
        assert largest <= TOLERANCE["float32"], config.pair.name


def test_linears_beside_the_experts_read_all_captions_in_one_row(tiny, stock_of):
    """Qwen2-MoE has a shared expert, whose linears are measured one by one."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 2048}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    experts = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
    config = Qwen2MoeConfig(**sizes, **heads, **experts, num_experts=4, num_experts_per_tok=2)
    module = Qwen2MoeForCausalLM(config).eval()
    module.set_experts_implementation("eager")
    linears = language_model_linears(module)
    model = replace(
        tiny, module=module, linears=linears, others=other_weighted_modules(module, linears)
    )
    data, config = calibration_of(model, score_size=4), config_of("wint8_aint8")
    replayed = KLReplayEngine(model).score([config], data, ignore_progress)[config.digest]
    assert len(replayed.groups) == 5  # q/k/v, o, gate/up and down of the shared expert, experts
    assert_parity(stock_of(model), config, replayed, data)


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
