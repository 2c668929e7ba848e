"""The replay engine scores what stock AutoQuant scores.

The plugin's options choose model, device and combinations, so parity on a GPU is one command. With
``-s`` it prints the largest difference of each combination:

    pytest tests/unit/scoring/replay/test_replay_parity.py -m slow
    pytest tests/unit/scoring/replay/test_replay_parity.py -m slow --aq-model qwen3-vl-4b \
        --aq-weights random
"""

import pytest
from builders import calibration_of, config_of, distinct_configs, ignore_progress, model_state
from parity import assert_parity
from pytest_autoquant.plugin.pytest_config import plan_of
from pytest_autoquant.scoring.replay.engine import ReplayEngine

SAMPLE = (
    "wfp8_afp8-default",
    "wint8_aint8-recipe_match_channel_token",
    "wint4_aint4-w_group64",
    "wint4_afp16-w_per_in_channel",
    "wfp16_aint8-a_per_hidden_channel",
)


@pytest.fixture(scope="module")
def model(aq_runner):
    return aq_runner.model


@pytest.fixture(scope="module")
def data(model):
    return calibration_of(model, score_size=6)


@pytest.fixture(scope="module")
def sample():
    return {name: config_of(*name.split("-")) for name in SAMPLE}


@pytest.fixture(scope="module")
def swept(model, sample, data):
    before = model_state(model.module)
    outcomes = ReplayEngine(model).score(list(sample.values()), data, ignore_progress)
    assert model_state(model.module) == before
    return outcomes


@pytest.mark.parametrize("name", SAMPLE)
def test_replay_equals_stock(model, sample, swept, data, name):
    assert_parity(model, sample[name], swept[sample[name].digest], data)


@pytest.mark.slow
def test_replay_equals_stock_for_every_combination_that_runs_here(model, aq_runner, pytestconfig):
    data = calibration_of(model)
    distinct = distinct_configs(aq_runner, plan_of(pytestconfig))
    configs = [config for _, config in distinct]
    outcomes = ReplayEngine(model).score(configs, data, ignore_progress)
    for name, config in distinct:
        largest = assert_parity(model, config, outcomes[config.digest], data)
        print(f"{name}: largest difference of a group {largest:.1e}")


def test_repeated_sweep_and_config_alone_give_the_same_bits(model, sample, swept, data):
    again = ReplayEngine(model).score(list(sample.values()), data, ignore_progress)
    assert all(again[digest].groups == swept[digest].groups for digest in swept)
    config = sample["wint4_aint4-w_group64"]
    alone = ReplayEngine(model).score([config], data, ignore_progress)[config.digest]
    assert alone.groups == swept[config.digest].groups
