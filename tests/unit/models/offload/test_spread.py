"""Offloaded models have the weights of resident ones, and bring them only when they are needed."""

import gc

import pytest
import torch
from builders import load_tiny
from pytest_autoquant.errors import ModelError, WriteError
from pytest_autoquant.models import loading
from pytest_autoquant.models.next_token import next_token_logits
from pytest_autoquant.models.offload.device_map import DeviceMap
from pytest_autoquant.models.offload.resident import missing_weights, resident, tensors
from pytest_autoquant.models.offload.spread import check_space
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
LAYER = "model.language_model.layers.2"


def weights_of(model):
    return {name: tensor.clone() for name, tensor in tensors(model.module)}


def assert_equal(offloaded, resident_model):
    expected, found = weights_of(resident_model), weights_of(offloaded)
    assert expected.keys() <= found.keys() <= {*expected, "lm_head.weight"}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert offloaded.record == resident_model.record
    assert (offloaded.dead, offloaded.others) == (resident_model.dead, resident_model.others)
    with torch.no_grad():
        logits = [next_token_logits(m.module, IDS) for m in (offloaded, resident_model)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", ["tiny-qwen3-vl", "tiny-qwen2.5-vl"])
@pytest.mark.parametrize("seed", [None, 3], ids=["checkpoint", "random"])
def test_offloaded_model_equals_the_resident_one(load, name, seed):
    offloaded, whole = load(name=name, random_seed=seed), load_tiny(name, random_seed=seed)
    assert (offloaded.is_offloaded, whole.is_offloaded) == (True, False)
    assert all(weight.is_meta for weight in offloaded.module.parameters())
    assert_equal(offloaded, whole)
    assert all(weight.is_meta for weight in offloaded.module.parameters())


def test_partly_offloaded_checkpoint_in_another_dtype_equals_the_resident_one(load):
    options = {"dtype": torch.bfloat16}
    offloaded, whole = load(3 << 20, **options), load_tiny(**options)
    assert 0 < sum(weight.is_meta for weight in offloaded.module.parameters()) < 107
    assert_equal(offloaded, whole)


@pytest.mark.parametrize("seed", [None, 3], ids=["checkpoint", "random"])
def test_weights_in_the_memory_of_another_device_are_those_of_the_model(load, monkeypatch, seed):
    """``cpu:0`` stands for a device that holds weights and computes nothing."""
    places = {"model.visual": "cpu", "model.language_model": "cpu:0", "lm_head": "cpu:0"}
    placed = DeviceMap(main="cpu", places=places, size=load_tiny().record.num_parameters)
    monkeypatch.setattr(loading, "device_map", lambda *_, **__: placed)
    offloaded = load(random_seed=seed)
    decoder = offloaded.module.get_decoder()
    assert all(weight.is_meta for weight in decoder.parameters())
    assert decoder.layers[0].mlp.up_proj._hf_hook.weights_map["weight"].device.type == "cpu"
    assert_equal(offloaded, load_tiny(random_seed=seed))


def test_random_weights_on_disk_are_those_of_this_process_and_go_with_the_model(load, tmp_path):
    """What another process left half-written in the folder is never read."""
    stale = tmp_path / ".offload-stale"
    stale.mkdir()
    (stale / f"{LAYER}.mlp.down_proj.weight.safetensors").write_bytes(b"half")
    offloaded = load(folder=tmp_path, random_seed=3)
    (own,) = set(tmp_path.iterdir()) - {stale}
    assert len(list(own.glob("*.safetensors"))) == 108  # the shared one under both of its names
    assert_equal(offloaded, load_tiny(random_seed=3))
    del offloaded
    gc.collect()
    assert list(tmp_path.iterdir()) == [stale]


def test_weights_that_transformers_converts_are_written_to_the_folder(load, tiny, tmp_path):
    """A checkpoint has a matrix for each expert, the model one for all of them."""
    checkpoint, weights = tmp_path / "mixture", tmp_path / "weights"
    config = Qwen3MoeConfig(
        **{"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        tie_word_embeddings=True,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(checkpoint)
    tiny.tokenizer.save_pretrained(checkpoint)
    most, whole = 4 * 2048 * 64, load_tiny(str(checkpoint))
    offloaded = load(most, folder=weights, name=str(checkpoint))
    assert all(weight.is_meta for weight in offloaded.module.parameters())
    assert len(list(weights.rglob("*.safetensors"))) == 2 * 2
    assert_equal(offloaded, whole)
    with pytest.raises(ModelError, match=r"^model mixture: its weights .* with --aq-offload-dir$"):
        load(most, name=str(checkpoint))


def test_folder_that_cannot_be_written_or_is_too_small_is_refused(load, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(WriteError, match=r"^offload folder .*file: cannot be written \(") as caught:
        load(folder=file, random_seed=3)
    assert str(caught.value).endswith("choose another one with --aq-offload-dir")
    check_space(tmp_path, 1)
    with pytest.raises(WriteError, match=r"GiB are free, and \d+\.\d GiB of weights are to be"):
        check_space(tmp_path, 1 << 62)


def test_layer_that_the_device_map_leaves_without_weights_is_refused(load, monkeypatch):
    spread = loading.spread_loaded

    def lose_a_layer(module, placed):
        module.get_submodule("model.visual.patch_embed").to_empty(device="meta")
        spread(module, placed)

    monkeypatch.setattr(loading, "spread_loaded", lose_a_layer)
    with pytest.raises(ModelError) as caught:
        load(3 << 20)
    assert str(caught.value).startswith(
        "model tiny-qwen3-vl: its device map leaves a layer without weights: "
    )


def test_tensors_on_meta_that_nothing_brings_are_named(load):
    module = load().module
    assert missing_weights(module) == []
    hook = module.get_submodule(f"{LAYER}.mlp.down_proj")._hf_hook
    hook.weights_map = None
    assert missing_weights(module) == [f"{LAYER}.mlp.down_proj.weight"]


def test_weights_are_held_for_a_block_also_when_it_raises(load):
    layer = load().module.get_submodule(LAYER)

    def use():
        with resident(layer):
            held = list(layer.parameters())
            assert not any(weight.is_meta for weight in held)
            with resident(layer.mlp.down_proj) as down:
                assert down.weight is layer.mlp.down_proj.weight
            layer.mlp(torch.ones(1, 2, 128))
            assert all(a is b for a, b in zip(layer.parameters(), held, strict=True))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert all(weight.is_meta for weight in layer.parameters())
