"""A model whose weights are all on disk is measured as one in memory, bit for bit."""

from dataclasses import replace

import pytest
import torch
from builders import (
    awq_config,
    calibration_of,
    config_of,
    ignore_progress,
    load_tiny,
    save_mixture,
    settings_of,
)
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.models.offload.device_map import Offload
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.models.offload.resident import tensors
from pytest_autoquant.scoring.engine_choice import Engines
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.kl_replay.whole_model import measure_whole_model
from pytest_autoquant.scoring.replay.engine import ReplayEngine

#: Bytes of the largest layer of the mixture, or of its embedding.
LARGEST_LAYER = 4 * 2048 * 128

CONFIGS = [
    config_of("wfp8_afp8"),
    config_of("wint4_aint4", "w_group64"),
    config_of("wint4_afp16", "w_per_in_channel"),
    config_of("wint8_aint8", "recipe_match_channel_token"),
]


@pytest.fixture(scope="module")
def data(tiny):
    return calibration_of(tiny, score_size=3)


def state(module):
    """Describe what a measurement may change in an offloaded model."""
    return {
        "weights": {name: tensor.clone() for name, tensor in tensors(module)},
        "devices": [(p.device, p.requires_grad, p.grad) for p in module.parameters()],
        "attributes": [sorted(vars(child)) for child in module.modules()],
        "hooks": [
            (len(child._forward_hooks), len(child._forward_pre_hooks), child._hf_hook.offload)
            for child in module.modules()
            if hasattr(child, "_hf_hook")
        ],
    }


def assert_same_state(found, before):
    weights, found["weights"] = found["weights"], before["weights"]
    assert found == before
    assert all(torch.equal(tensor, before["weights"][name]) for name, tensor in weights.items())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for digest, measurement in expected.items():
        ranges = found[digest].ranges
        assert list(ranges) == list(measurement.ranges)
        assert all(torch.equal(ranges[name], x) for name, x in measurement.ranges.items())
        timing = {"timing": measurement.timing}
        assert (
            replace(found[digest], **timing) == measurement
        )  # scores, signal, descriptions, notes


@pytest.mark.parametrize(
    "engine",
    [
        lambda model: ReplayEngine(model),
        lambda model: ReplayEngine(model, method="fisher"),
        lambda model: KLReplayEngine(model, is_fused=True),
    ],
    ids=["gradient", "fisher", "kl_div"],
)
def test_scores_are_those_of_the_model_in_memory(tiny, offloaded, data, engine):
    before = state(offloaded.module)
    expected, found = (
        engine(model).score(CONFIGS, data, ignore_progress) for model in (tiny, offloaded)
    )
    assert all(group.score > 0 for group in expected[CONFIGS[0].digest].groups)
    assert_equal(found, expected)
    assert_same_state(state(offloaded.module), before)


@pytest.mark.parametrize("engine", [ReplayEngine, KLReplayEngine])
def test_mixture_of_experts_on_disk_is_scored_as_in_memory(tmp_path, engine):
    folder = str(save_mixture(tmp_path / "mixture", layers=2))
    on_disk = Offload(max_memory=MaxMemory(each=LARGEST_LAYER), folder=tmp_path)
    resident = load_tiny(folder, random_seed=0)
    offloaded = load_tiny(folder, random_seed=0, offload=on_disk)
    data = calibration_of(resident, score_size=3)
    expected, found = (
        engine(model).score(CONFIGS[:2], data, ignore_progress) for model in (resident, offloaded)
    )
    assert offloaded.is_offloaded
    assert all(group.score > 0 for group in expected[CONFIGS[0].digest].groups)
    assert_equal(found, expected)


def test_whole_model_divergence_is_that_of_the_model_in_memory(tiny, offloaded, data):
    before = state(offloaded.module)
    expected, found = (
        measure_whole_model(model, CONFIGS, data, ignore_progress) for model in (tiny, offloaded)
    )
    for config in CONFIGS:
        assert found[config.digest].per_caption == expected[config.digest].per_caption
        assert min(expected[config.digest].per_caption) > 0
    assert_same_state(state(offloaded.module), before)


def test_stored_tape_serves_a_model_wherever_its_weights_are(tiny, offloaded, data, tmp_path):
    expected = ReplayEngine(tiny).score(CONFIGS, data, ignore_progress)
    phases = []
    for model in (offloaded, tiny, offloaded):
        engine = ReplayEngine(model, tape_folder=tmp_path)
        assert_equal(engine.score(CONFIGS, data, lambda phase, *_: phases.append(phase)), expected)
        assert len(list(tmp_path.iterdir())) == 1
    assert phases.count("capture") == 6  # once, through the layers


def test_out_of_memory_is_retried_with_no_weight_left_behind(tiny, offloaded, data, monkeypatch):
    expected = ReplayEngine(tiny).score(CONFIGS, data, ignore_progress)
    sweeps = []

    def sweep(self, *arguments):
        sweeps.append(sum(not weight.is_meta for weight in offloaded.module.parameters()))
        if len(sweeps) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(self, *arguments)

    original = ReplayEngine._sweep
    monkeypatch.setattr(ReplayEngine, "_sweep", sweep)
    found = ReplayEngine(offloaded).score(CONFIGS, data, ignore_progress)
    assert_equal(found, expected)
    assert len(sweeps) == 2 + 6
    assert set(sweeps) == {11}  # each time those of one layer


def test_what_only_stock_autoquant_can_score_is_refused(offloaded):
    engines = Engines(settings_of(device_map="auto"), lambda: offloaded)
    assert engines.choose(CONFIGS[0], "small").engine.name == "replay"
    with pytest.raises(MeasurementError) as caught:
        engines.choose(awq_config(), "small")
    assert str(caught.value).startswith("only stock AutoQuant could score this case (calibration")
    assert str(caught.value).endswith("give --aq-device-map single where one device can hold it")
