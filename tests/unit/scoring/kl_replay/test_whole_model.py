"""Whole-model KL divergence is that of the model which ``mtq.quantize`` makes.

With ``-s`` the slow test prints the difference of every configuration that runs here:

    pytest tests/unit/scoring/kl_replay/test_whole_model.py -m slow -s
"""

from dataclasses import replace

import modelopt.torch.quantization as mtq
import pytest
import torch
from builders import (
    calibration_of,
    config_of,
    distinct_configs,
    ignore_progress,
    load_tiny,
    model_state,
)
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.plugin.pytest_config import plan_of
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.kl_replay import whole_model
from pytest_autoquant.scoring.kl_replay.quantized_layer import QuantizedLayer
from pytest_autoquant.scoring.kl_replay.whole_model import measure_whole_model
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.replay.sweep import SweepPlan
from torch.nn import functional

#: Largest relative difference in fp32.
TOLERANCE = 1e-4
SAMPLE = (
    "wfp8_afp8-default",
    "wint8_afp16-default",
    "wint8_aint8-recipe_match_channel_token",
    "wint4_afp16-w_group64",
    "wint4_aint8-w_group128",
    "wfp16_aint8-a_per_hidden_channel",
)
FP8, INT8 = config_of("wfp8_afp8"), config_of("wint8_aint8")


@pytest.fixture(scope="module")
def data(model):
    """Ten captions, of which the five shortest are scored and all calibrate."""
    return calibration_of(model, score_size=5)


def stock_divergences(model, config, data):
    """KL by caption, in the order of ``by_digest``, of the model that ModelOpt quantizes."""

    def log_probabilities():
        for batch in data.replayed:
            logits = model.module(input_ids=model.tensor(batch), use_cache=False).logits
            yield logits[:, :-1].double().log_softmax(-1)

    def calibrate(module):
        for batch in data.batches:
            module(input_ids=model.tensor(batch), use_cache=False)

    with torch.no_grad():
        plain = list(log_probabilities())
        with preserved(model.module):
            mtq.quantize(model.module, config.modelopt(), calibrate)
            quantized = list(log_probabilities())
    found = [
        functional.kl_div(q, p, reduction="none", log_target=True).sum((1, 2))
        for q, p in zip(quantized, plain, strict=True)
    ]
    return torch.cat(found)[list(data.by_digest)].tolist()


def test_divergence_is_that_of_the_model_that_modelopt_quantizes(model, data):
    configs = {name: config_of(*name.split("-")) for name in SAMPLE}
    before = model_state(model.module)
    found = measure_whole_model(model, list(configs.values()), data, ignore_progress)
    assert model_state(model.module) == before
    for name, config in configs.items():
        expected = stock_divergences(model, config, data)
        measured = found[config.digest].per_caption
        assert min(expected) > 0
        assert sum(measured) == pytest.approx(sum(expected), rel=TOLERANCE), name
        assert measured == pytest.approx(expected, rel=10 * TOLERANCE), name


def test_divergence_of_a_mixture_is_that_of_the_model_that_modelopt_quantizes(mixture):
    data = calibration_of(mixture, score_size=3)
    configs = [FP8, config_of("wint4_aint8", "w_group64")]
    before = model_state(mixture.module)
    found = measure_whole_model(mixture, configs, data, ignore_progress)
    assert model_state(mixture.module) == before
    for config in configs:
        expected = stock_divergences(mixture, config, data)
        assert min(expected) > 0
        assert found[config.digest].per_caption == pytest.approx(expected, rel=10 * TOLERANCE)


@pytest.mark.slow
def test_divergence_is_modelopts_for_every_combination_that_runs_here(
    model, data, aq_runner, pytestconfig
):
    distinct = distinct_configs(aq_runner, plan_of(pytestconfig))
    configs = [config for _, config in distinct]
    found = measure_whole_model(model, configs, data, ignore_progress)
    for name, config in distinct:
        expected = sum(stock_divergences(model, config, data))
        measured = sum(found[config.digest].per_caption)
        print(f"{name}: {measured:.6g}, difference {measured / expected - 1:.1e}")
        assert measured == pytest.approx(expected, rel=TOLERANCE), name


def captions_of(outcome):
    return list(outcome.per_caption)


@pytest.fixture(scope="module")
def measured(model, data):
    return measure_whole_model(model, [FP8, INT8], data, ignore_progress)


def test_divergence_does_not_depend_on_how_many_configs_walk_together(
    model, data, measured, monkeypatch
):
    for limit in ("_WEIGHT_BYTES", "_STATE_BYTES", "_OUTPUT_BYTES"):
        monkeypatch.setattr(whole_model, limit, 1)
    found = measure_whole_model(model, [FP8, INT8], data, ignore_progress)
    for config in (FP8, INT8):
        expected = captions_of(measured[config.digest])
        assert captions_of(found[config.digest]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["weight", "input"])
def test_config_whose_quantizer_raises_fails_alone(model, data, measured, monkeypatch, kind):
    stock = getattr(SweepPlan, f"quantized_{kind}")
    broken = getattr(INT8, kind)

    def fails(self, attributes, *arguments):
        if attributes == broken:
            raise ValueError("no such quantizer")
        return stock(self, attributes, *arguments)

    monkeypatch.setattr(SweepPlan, f"quantized_{kind}", fails)
    found = measure_whole_model(model, [INT8, FP8], data, ignore_progress)
    assert found[INT8.digest].reason == "ValueError: no such quantizer"
    expected = captions_of(measured[FP8.digest])
    assert captions_of(found[FP8.digest]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("failures", [1, 3])
def test_out_of_memory_is_retried_with_less_at_a_time(model, data, measured, monkeypatch, failures):
    stock, calls = QuantizedLayer.__init__, []

    def full(self, *arguments):
        calls.append(1)
        if len(calls) <= failures:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\n")
        stock(self, *arguments)

    monkeypatch.setattr(QuantizedLayer, "__init__", full)
    found = measure_whole_model(model, [FP8], data, ignore_progress)[FP8.digest]
    if failures < 3:
        assert captions_of(found) == pytest.approx(captions_of(measured[FP8.digest]), rel=1e-4)
    else:
        assert isinstance(found, Failure)
        assert "Tried to allocate 9 GiB; use fewer captions" in found.reason


def test_model_that_cannot_be_started_between_its_layers_gives_the_reason(data):
    model = load_tiny()
    layer = model.module.model.language_model.layers[1]
    own = layer.forward
    layer.forward = lambda *a, **k: (own(*a, **k),)
    found = measure_whole_model(model, [FP8, INT8], data, ignore_progress)
    for config in (FP8, INT8):
        assert found[config.digest].reason == (
            "the decoder cannot be run layer by layer: layer 1 does not return a hidden state alone"
        )


def test_known_ranges_calibrate_without_the_captions_that_are_not_scored(model, data, measured):
    ranges = ReplayEngine(model).score([FP8], data, ignore_progress)[FP8.digest].ranges
    scored = replace(data, unscored=())
    alone = measure_whole_model(model, [FP8], scored, ignore_progress)[FP8.digest]
    known = measure_whole_model(model, [FP8], scored, ignore_progress, ranges)[FP8.digest]
    expected = captions_of(measured[FP8.digest])
    assert captions_of(known) == pytest.approx(expected, rel=1e-4)
    assert captions_of(alone) != pytest.approx(expected, rel=1e-2)


def test_fewer_captions_are_the_first_by_digest(model, data, measured):
    fewer = data.scoring_first(2)
    assert fewer.scored_digests == data.scored_digests[:2]
    assert fewer.num_captions == data.num_captions
    found = measure_whole_model(model, [FP8], fewer, ignore_progress)[FP8.digest]
    expected = captions_of(measured[FP8.digest])[:2]
    assert captions_of(found) == pytest.approx(expected, rel=1e-4)
