"""Fused experts are scored as stock AutoQuant scores them, at the output of the mixture.

On a GPU, ``test_replay_parity.py`` compares a mixture of the registry: ``--aq-model
qwen3-vl-30b-a3b --aq-weights random``.
"""

import pytest
import torch
from builders import calibration_of, config_of, distinct_configs, ignore_progress, model_state
from parity import assert_parity
from pytest_autoquant.plugin.pytest_config import plan_of
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.token_slices import token_slices

SAMPLE = (
    "wfp8_afp8-default",
    "wint8_aint8-recipe_match_channel_token",
    "wint4_aint4-w_group64",
    "wint4_aint8-w_per_in_channel",
    "wfp16_aint8-a_per_hidden_channel",
)
EXPERTS = tuple(f"model.language_model.layers.{layer}.mlp.experts" for layer in range(2))


@pytest.fixture(scope="module")
def data(mixture):
    return calibration_of(mixture, score_size=6)


@pytest.fixture(scope="module")
def sample():
    return {name: config_of(*name.split("-")) for name in SAMPLE}


@pytest.fixture(scope="module")
def swept(mixture, sample, data):
    before = model_state(mixture.module)
    outcomes = ReplayEngine(mixture).score(list(sample.values()), data, ignore_progress)
    assert model_state(mixture.module) == before
    return outcomes


@pytest.mark.parametrize("name", SAMPLE)
def test_replay_of_experts_equals_stock(mixture, sample, swept, data, name):
    measured = swept[sample[name].digest]
    scores = {group.name.removesuffix(".quant_recipe"): group for group in measured.groups}
    assert all(scores[experts].score > 0 and scores[experts].quantized for experts in EXPERTS)
    assert len(scores[EXPERTS[0]].per_caption) == 6
    assert_parity(mixture, sample[name], measured, data)


@pytest.mark.slow
def test_replay_equals_stock_for_every_combination_that_runs_here(mixture, aq_runner, pytestconfig):
    data = calibration_of(mixture)
    distinct = distinct_configs(aq_runner, plan_of(pytestconfig))
    configs = [config for _, config in distinct]
    outcomes = ReplayEngine(mixture).score(configs, data, ignore_progress)
    for name, config in distinct:
        largest = assert_parity(mixture, config, outcomes[config.digest], data)
        print(f"{name}: largest difference of a group {largest:.1e}")


def test_stored_tape_gives_the_same_bits(mixture, sample, swept, data, tmp_path):
    for _ in range(2):
        engine = ReplayEngine(mixture, tape_folder=tmp_path)
        found = engine.score(list(sample.values()), data, ignore_progress)
        assert all(found[digest].groups == swept[digest].groups for digest in swept)
    assert len(list(tmp_path.iterdir())) == 1


def test_tape_has_the_routing_and_both_ranges(mixture, data):
    tape = capture(mixture, data, torch.device("cpu"), ignore_progress)
    assert tuple(tape.routing) == EXPERTS
    tokens = sum(batch.num_tokens for batch in data.batches)
    for name in EXPERTS:
        routing = tape.routing[name]
        assert routing.experts.shape == routing.weights.shape == (sum(tape.batch_tokens), 2)
        assert routing.weights.sum(1).allclose(torch.ones(1))
        assert routing.counts.sum() == 2 * tokens
        assert tape.amax[name].shape == (128,)
        assert tape.amax[f"{name}.down_proj"].shape == (64,)
    assert tape.routing[EXPERTS[1]].counts[4] == 0
    assert tape.routing[EXPERTS[0]].counts.min() > 0
    assert tape.batch_tokens == tuple(batch.num_tokens for batch in data.replayed)


def test_few_tokens_at_a_time_split_batches_where_the_slice_ends(mixture, data):
    tape = capture(mixture, data, torch.device("cpu"), ignore_progress)
    first = tape.batch_tokens[0]
    names = [linear.name for linear in mixture.linears]
    slices = token_slices(tape, names, torch.device("cpu"), first + 3)
    routed = [each.routing for each in slices if EXPERTS[0] in each.gradients]
    assert routed[0].parts[:2] == (slice(0, first), slice(first, first + 3))
    assert sum(part.stop - part.start for each in routed for part in each.parts) == sum(
        tape.batch_tokens
    )
