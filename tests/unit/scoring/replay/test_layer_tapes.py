"""Tapes of one layer at a time are the tape of the model in one place, bit for bit."""

import pytest
import torch
from builders import calibration_of, ignore_progress
from pytest_autoquant.scoring.replay.layer_tapes import _Walk, layer_bytes, layer_tapes
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.tape import estimate_bytes, joined

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tiny):
    data = calibration_of(tiny, score_size=5)
    assert data.unscored
    return data


@pytest.mark.parametrize("draws", [0, 3])
def test_tapes_of_layers_are_the_whole_tape(tiny, offloaded, data, draws):
    whole = capture(tiny, data, CPU, ignore_progress, draws)
    for model in (tiny, offloaded):
        tapes = list(layer_tapes(model, data, CPU, ignore_progress, draws))
        assert [len(tape.gradients) for tape in tapes] == [7] * 6
        assert all(f".layers.{5 - i}." in name for i, t in enumerate(tapes) for name in t.source)
        together = joined(tapes)
        assert together.fingerprint == whole.fingerprint
        assert (together.source, together.caption_lengths) == (whole.source, whole.caption_lengths)
        for kind in ("inputs", "amax", "gradients"):
            expected, found = getattr(whole, kind), getattr(together, kind)
            assert list(found) == list(expected)
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_weights_of_one_layer_are_at_hand_while_its_tape_is(offloaded, data):
    layers = offloaded.module.get_decoder().layers
    tapes = layer_tapes(offloaded, data, CPU, ignore_progress)
    for index, _ in zip(reversed(range(6)), tapes, strict=True):
        at_hand = {i for i, layer in enumerate(layers) if not layer.mlp.up_proj.weight.is_meta}
        assert at_hand == {index}


def test_memory_is_that_of_the_states_and_of_one_layer(offloaded, data):
    walk = _Walk(offloaded, data, CPU, 0)
    walk.forward(ignore_progress)
    kept = sum(state.nbytes for states in walk._states for state in states)
    (tape, *_) = walk.backward(ignore_progress)
    assert kept + tape.nbytes <= layer_bytes(offloaded, data) < 2 * (kept + tape.nbytes)
    assert layer_bytes(offloaded, data) < estimate_bytes(offloaded, data) / 2


def test_interrupted_recording_leaves_no_hook_and_no_weight(offloaded, data):
    def interrupt(phase, done, total):
        if (phase, done) == ("capture layers", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(layer_tapes(offloaded, data, CPU, interrupt))
    children = list(offloaded.module.modules())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in children)
    assert all(weight.is_meta for weight in offloaded.module.parameters())
