"""The tape: what is recorded, kept and refused."""

from dataclasses import replace

import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.tape import (
    choose_device,
    estimate_bytes,
    load_tape,
    save_tape,
    tape_fingerprint,
)
from safetensors.torch import load_file

CPU = torch.device("cpu")
LAYER = "model.language_model.layers.3"


def ignore_progress(phase, done, total):
    pass


@pytest.fixture(scope="module")
def tiny():
    return load_model(REGISTRY["tiny-qwen3-vl"], device=CPU, dtype=torch.float32)


def batches(tiny, size="small", batch_size=32, score_size=128):
    captions = load_captions(None, size)
    ids = tiny.tokenize(captions.lines)
    return calibration_data(captions, ids, batch_size=batch_size, score_size=score_size)


@pytest.fixture(scope="module")
def data(tiny):
    return batches(tiny, score_size=12)


@pytest.fixture(scope="module")
def tape(tiny, data):
    return capture(tiny, data, CPU, ignore_progress)


def test_linears_that_read_one_tensor_share_one_input(tape):
    assert tape.source[f"{LAYER}.self_attn.k_proj"] == f"{LAYER}.self_attn.q_proj"
    assert tape.source[f"{LAYER}.mlp.up_proj"] == f"{LAYER}.mlp.gate_proj"
    assert tape.source[f"{LAYER}.mlp.down_proj"] == f"{LAYER}.mlp.down_proj"
    assert len(tape.inputs) == 6 * 4
    assert len(tape.gradients) == 6 * 7


def test_scored_tokens_are_recorded_and_every_caption_counts_for_the_ranges(tiny, data, tape):
    scored = sum(batch.num_tokens for batch in data.scored)
    assert len(data.unscored) > 0
    assert {len(x) for x in (*tape.inputs.values(), *tape.gradients.values())} == {scored}
    seen = {}
    name = f"{LAYER}.mlp.down_proj"
    handle = tiny.module.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.setdefault("x", []).append(args[0].abs().amax(dim=(0, 1)))
    )
    with torch.no_grad():
        for batch in data.batches:
            tiny.module(input_ids=tiny.tensor(batch))
    handle.remove()
    assert torch.equal(tape.amax[name], torch.stack(seen["x"]).amax(dim=0))
    assert (tape.amax[name] >= tape.inputs[name].abs().amax(dim=0)).all()
    assert (tape.amax[name] > tape.inputs[name].abs().amax(dim=0)).any()


def test_captions_that_shared_a_batch_come_first(tiny, data, tape):
    shared = [batch for batch in data.scored if len(batch.rows) > 1]
    assert 0 < len(shared) < len(data.scored)
    assert tape.together == sum(batch.num_tokens for batch in shared)
    name = f"{LAYER}.mlp.down_proj"
    seen = []
    handle = tiny.module.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, 1))
    )
    with torch.no_grad():
        tiny.module(input_ids=tiny.tensor(next(b for b in data.scored if len(b.rows) == 1)))
    handle.remove()
    alone = tape.inputs[name][tape.together :][: len(seen[0])]
    assert torch.allclose(alone, seen[0], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_summed_loss(tiny, data, tape):
    """The gradient of the last linear's output, by perturbing it."""
    name = f"{LAYER}.mlp.down_proj"
    linear = tiny.module.get_submodule(name)
    batch = next(batch for batch in data.scored if len(batch.rows) > 1)
    ids = tiny.tensor(batch)
    direction = torch.randn(
        *ids.shape, linear.out_features, generator=torch.Generator().manual_seed(0)
    )

    @torch.no_grad()
    def loss(step):
        handle = linear.register_forward_hook(lambda *call: call[2] + step * direction)
        value = next_token_loss(next_token_logits(tiny.module, ids), ids)
        handle.remove()
        return float(value)

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    recorded = tape.gradients[name][: batch.num_tokens].view_as(direction)
    assert float((recorded * direction).sum()) == pytest.approx(slope, rel=2e-2)


def test_capturing_leaves_no_trace_on_the_model(tiny, data):
    module = tiny.module
    before = {
        "hooks": [len(child._forward_hooks) for child in module.modules()],
        "grads": [(p.requires_grad, p.grad) for p in module.parameters()],
        "weights": [p.detach().clone() for p in module.parameters()],
        "names": [list(child.__dict__) for child in module.modules()],
    }
    capture(tiny, data, CPU, ignore_progress)
    assert before["hooks"] == [len(child._forward_hooks) for child in module.modules()]
    assert before["grads"] == [(p.requires_grad, p.grad) for p in module.parameters()]
    assert before["names"] == [list(child.__dict__) for child in module.modules()]
    assert all(
        torch.equal(a, b) for a, b in zip(before["weights"], module.parameters(), strict=True)
    )


def test_a_linear_that_runs_twice_is_refused(tiny, data):
    layers = tiny.module.model.language_model.layers
    own = layers[1].mlp
    layers[1].mlp = layers[0].mlp
    try:
        with pytest.raises(MeasurementError, match="runs several times per forward"):
            capture(tiny, data, CPU, ignore_progress)
    finally:
        layers[1].mlp = own


def test_hooks_are_removed_when_capturing_is_interrupted(tiny, data):
    def interrupt(phase, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(tiny, data, CPU, interrupt)
    assert not any(child._forward_hooks for child in tiny.module.modules())


def test_the_estimate_is_an_upper_bound(tiny, data, tape):
    assert tape.nbytes <= estimate_bytes(tiny, data) < 2 * tape.nbytes


def test_on_a_cpu_the_tape_lives_in_host_memory(tiny, data):
    assert choose_device("auto", tiny, data) == CPU
    assert choose_device("cpu", tiny, data) == CPU


def test_a_tape_survives_saving_and_loading_bit_for_bit(tiny, data, tape, tmp_path):
    path = tmp_path / "new" / "small.tape.safetensors"
    save_tape(tape, path)
    loaded = load_tape(path, tape_fingerprint(tiny, data), CPU)
    assert loaded.source == tape.source
    for part in ("inputs", "amax", "gradients"):
        first, second = getattr(tape, part), getattr(loaded, part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert f"input/{LAYER}.mlp.down_proj" in load_file(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "0" * 64), ("captions", "1" * 64), ("torch", "1.0"), ("format", 0)],
)
def test_a_tape_of_something_else_is_refused_by_the_field(tiny, data, tape, tmp_path, field, value):
    path = tmp_path / "other.tape.safetensors"
    save_tape(replace(tape, fingerprint=replace(tape.fingerprint, **{field: value})), path)
    with pytest.raises(MeasurementError, match=rf"captured from something else \({field} "):
        load_tape(path, tape_fingerprint(tiny, data), CPU)


@pytest.mark.parametrize("content", [b"", b"not a tape", b"\xff" * 64])
def test_a_file_that_is_no_tape_is_refused(tiny, data, tmp_path, content):
    path = tmp_path / "broken.tape.safetensors"
    path.write_bytes(content)
    with pytest.raises(MeasurementError, match="is not a tape of this version"):
        load_tape(path, tape_fingerprint(tiny, data), CPU)


def test_other_captions_or_batches_make_another_fingerprint(tiny, data):
    fingerprints = {
        tape_fingerprint(tiny, other)
        for other in (data, batches(tiny), batches(tiny, "medium"), batches(tiny, batch_size=1))
    }
    assert len(fingerprints) == 4


def test_gradients_that_are_not_finite_name_the_layer(tiny, data):
    norm = tiny.module.get_submodule(f"{LAYER}.post_attention_layernorm")
    start = norm.weight.detach().clone()
    with torch.no_grad():
        norm.weight[0] = float("nan")
    try:
        broken = capture(tiny, data, CPU, ignore_progress).broken
    finally:
        with torch.no_grad():
            norm.weight.copy_(start)
    assert f"{LAYER}.mlp.down_proj" in broken
