"""The engine beside its numbers: models that cannot be started in between, failures, memory."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from builders import awq_config, calibration_of, config_of, ignore_progress, load_tiny
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.kl_replay import quantized_group
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.kl_replay.quantized_group import QuantizedGroup
from pytest_autoquant.scoring.kl_replay.recording import input_ranges

FP8, INT8 = config_of("wfp8_afp8"), config_of("wint8_aint8")


@pytest.fixture(scope="module")
def data(model):
    return calibration_of(model, score_size=3)


@pytest.fixture(scope="module")
def measured(model, data):
    return KLReplayEngine(model).score([FP8, INT8], data, ignore_progress)


def scores(measurement):
    return [group.score for group in measurement.groups]


def test_measurement_describes_the_quantizers_and_the_phases(measured):
    measurement = measured[INT8.digest]
    assert measurement.quantizers["weight_quantizer"].startswith("8 bit fake")
    assert list(measurement.timing) == ["record", "sweep"]
    assert all(score > 0 for score in scores(measurement))


def test_ranges_of_other_captions_calibrate_instead_of_the_measured_ones(model, data, measured):
    ranges = input_ranges(model, data.batches)
    scored_only = replace(data, unscored=())
    given, own = (
        scores(
            KLReplayEngine(model, ranges=each).score([INT8], scored_only, ignore_progress)[
                INT8.digest
            ]
        )
        for each in (ranges, None)
    )
    assert given == scores(measured[INT8.digest])
    assert own != given


def test_divergence_does_not_depend_on_how_many_versions_run_at_a_time(
    model, data, measured, monkeypatch
):
    monkeypatch.setattr(quantized_group, "_LOGITS_BYTES", 1)
    monkeypatch.setattr(quantized_group, "_WEIGHT_BYTES", 1)
    outcomes = KLReplayEngine(model, record_device="cpu").score([FP8, INT8], data, ignore_progress)
    for config in (FP8, INT8):
        expected = scores(measured[config.digest])
        assert scores(outcomes[config.digest]) == pytest.approx(expected, rel=1e-5)


def test_config_that_raises_fails_alone(model, data, measured, monkeypatch):
    stock = quantized_group.functional.linear
    broken = config_of("wint8_afp16")

    def fails(self, plan, name, attributes):
        if attributes is None:
            raise ValueError("no such input")
        return inputs(self, plan, name, attributes)

    inputs = QuantizedGroup._quantized_input
    monkeypatch.setattr(QuantizedGroup, "_quantized_input", fails)
    outcomes = KLReplayEngine(model).score([broken, FP8], data, ignore_progress)
    assert quantized_group.functional.linear is stock
    assert outcomes[broken.digest].reason == "ValueError: no such input"
    assert scores(outcomes[FP8.digest]) == pytest.approx(scores(measured[FP8.digest]), rel=1e-5)


@pytest.mark.parametrize("failures", [1, 2, 100])
def test_out_of_memory_is_retried_with_less_at_a_time(model, data, measured, monkeypatch, failures):
    divisors, sweep = [], KLReplayEngine._sweep

    def run(self, plan, recorded, progress):
        divisors.append(recorded.divisor)
        if len(divisors) <= failures:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\n")
        return sweep(self, plan, recorded, progress)

    monkeypatch.setattr(KLReplayEngine, "_sweep", run)
    outcome = KLReplayEngine(model).score([FP8], data, ignore_progress)[FP8.digest]
    assert divisors == [1, 4, 16][: failures + 1]
    if failures < 3:
        assert scores(outcome) == pytest.approx(scores(measured[FP8.digest]), rel=1e-5)
    else:
        assert isinstance(outcome, Failure)
        assert re.fullmatch(r"out of memory with .* 9 GiB; use fewer .*", outcome.reason)


def test_algorithm_that_changes_weights_is_refused(model):
    assert "needs more than recorded ranges" in KLReplayEngine(model).refuses(awq_config())
    assert KLReplayEngine(model).refuses(FP8) is None


def decoder(model):
    return model.module.model.language_model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: lambda *a, **k: (layer(*a, **k),), "layer 1 does not return a hidden"),
        (lambda layer: lambda *a, **k: layer(*a, **k)[:, 1:], "layer 1 does not return a hidden"),
    ],
    ids=["a tuple", "fewer tokens"],
)
def test_model_that_cannot_be_started_between_its_layers_is_refused(data, change, message):
    model = load_tiny()
    layer = decoder(model).layers[1]
    layer.forward = change(layer.forward)
    with pytest.raises(NotReplayableError, match=message) as caught:
        KLReplayEngine(model).score([FP8], data, ignore_progress)
    assert str(caught.value).endswith("use --aq-engine modelopt")


def test_layer_that_runs_twice_or_not_at_all_is_refused(data):
    model = load_tiny()
    layers = decoder(model).layers
    first, second = layers[0], layers[1]
    second.forward = lambda hidden, **options: first(hidden, **options)
    with pytest.raises(NotReplayableError, match="layer 0 runs where layer 2 was expected"):
        KLReplayEngine(model).score([FP8], data, ignore_progress)
    second.forward = type(second).forward.__get__(second)
    decoder(model).layers = layers[:5]
    watched = DecoderLayers(load_tiny())
    with (
        pytest.raises(NotReplayableError, match="layer 0 does not run"),
        watched.watched(lambda *_: None),
    ):
        pass


def test_forward_of_a_patched_layer_is_kept(data, measured):
    """accelerate and others replace a layer's forward; the engine puts theirs back."""
    model = load_tiny()
    layer, calls = decoder(model).layers[0], []
    own = layer.forward

    def counted(*arguments, **options):
        calls.append(1)
        return own(*arguments, **options)

    layer.forward = counted
    outcome = KLReplayEngine(model).score([FP8], data, ignore_progress)[FP8.digest]
    assert scores(outcome) == pytest.approx(scores(measured[FP8.digest]), rel=1e-5)
    assert layer.forward is counted
    assert calls


@pytest.mark.slow
def test_compiled_layers_measure_what_the_others_do(model, data, measured, monkeypatch):
    if model.device.type == "cpu" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    monkeypatch.setattr(KLReplayEngine, "_compiling_pays", lambda *_: True)
    outcome = KLReplayEngine(model).score([FP8], data, ignore_progress)[FP8.digest]
    assert outcome.notes == ()
    assert scores(outcome) == pytest.approx(scores(measured[FP8.digest]), rel=1e-4)
    assert scores(outcome) != scores(measured[FP8.digest])


def test_layers_that_cannot_be_compiled_run_uncompiled(model, data, measured, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(KLReplayEngine, "_compiling_pays", lambda *_: True)
    monkeypatch.setattr(DecoderLayers, "compiled", lambda self: fails)
    outcome = KLReplayEngine(model).score([FP8], data, ignore_progress)[FP8.digest]
    assert outcome.notes == (
        "torch.compile cannot compile the decoder layers: RuntimeError: no compiler",
    )
    assert scores(outcome) == pytest.approx(scores(measured[FP8.digest]), rel=1e-5)


def test_layers_with_a_patched_forward_are_not_compiled():
    model = load_tiny()
    layer = decoder(model).layers[2]
    layer.forward = layer.forward
    assert DecoderLayers(model).compiled() is None
