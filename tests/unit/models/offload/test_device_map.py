"""Where modules are placed, and the limits that are refused."""

import pytest
import torch
from pytest_autoquant.errors import UsageError
from pytest_autoquant.models.architecture import empty_model
from pytest_autoquant.models.offload.device_map import (
    DeviceMap,
    Offload,
    device_map,
    readable_bytes,
)
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.models.registry import find_model

CPU, FP32 = torch.device("cpu"), torch.float32
ONE_LAYER = 4 * 2048 * 128


@pytest.fixture(scope="module")
def empty():
    return empty_model(find_model("tiny-qwen3-vl", random_weights=False), False, False, FP32)


def placed(empty, most=None, dtype=FP32, **by_device):
    limits = MaxMemory(each=most, by_device=by_device)
    return device_map(empty, device=CPU, dtype=dtype, offload=Offload(max_memory=limits))


def test_model_that_fits_is_not_spread(empty):
    assert placed(empty) is None
    assert placed(empty, sum(p.nbytes for p in empty.parameters()) + 2 * ONE_LAYER) is None


def test_shared_weights_and_whole_decoder_layers_have_one_place(empty):
    found = placed(empty, 5 * ONE_LAYER)
    names = [name for name, _ in empty.named_parameters()]
    places = {name: found.place_of(name) for name in (*names, "lm_head.weight")}
    assert set(places.values()) == {"cpu", "disk"}
    assert places["lm_head.weight"] == places["model.language_model.embed_tokens.weight"]
    for index in range(6):
        layer = f"model.language_model.layers.{index}."
        assert len({place for name, place in places.items() if name.startswith(layer)}) == 1
    held = sum(p.nbytes for name, p in empty.named_parameters() if places[name] == "cpu")
    assert 0 < held <= 4 * ONE_LAYER  # one is left free for a layer that is brought
    assert found.num_parameters() == empty.num_parameters()


def test_less_than_one_layer_is_refused_with_what_it_needs(empty):
    assert placed(empty, ONE_LAYER).places == {"": "disk"}
    with pytest.raises(UsageError) as caught:
        placed(empty, ONE_LAYER - 1)
    assert str(caught.value) == (
        "--aq-max-memory: weights may take 1024.0 KiB of the host, and one layer, "
        "model.language_model.embed_tokens, takes 1024.0 KiB; allow at least as much"
    )
    assert placed(empty, ONE_LAYER // 2, torch.bfloat16).places == {"": "disk"}


def test_gpu_that_is_not_there_is_refused(empty):
    with pytest.raises(UsageError, match=r"^--aq-max-memory names GPU 7, .* may use 0 GPUs"):
        placed(empty, **{"7": 1 << 30})


def test_checkpoint_passes_by_the_host_on_its_way_to_another_gpu():
    found = DeviceMap(main=1, places={"a": 1, "b": 0, "b.c": "disk", "d": "cpu"}, size=4)
    assert found.on_loading() == {"a": 1, "b": "cpu", "b.c": "disk", "d": "cpu"}
    assert [found.place_of(name) for name in ("a.x", "b.w", "b.c.w")] == [1, 0, "disk"]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (17, "17 bytes"),
        (10 << 10, "10.0 KiB"),
        ((10 << 30) + 1, "10.1 GiB"),
        (5 << 30, "5120.0 MiB"),
    ],
)
def test_bytes_are_rounded_up(size, words):
    assert readable_bytes(size) == words
