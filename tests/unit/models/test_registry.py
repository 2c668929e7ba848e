"""Model names: registry entries, folders and hub ids."""

import json
import re
from pathlib import Path

import pytest
import torch
from pytest_autoquant.errors import AutoquantError, ModelError, UsageError
from pytest_autoquant.models.registry import DEFAULT_MODEL, EMBEDDED_TOKENIZER, REGISTRY, find_model
from transformers import AutoConfig, AutoModelForImageTextToText


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "My Model.v2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_registry_entries():
    assert list(REGISTRY) == [DEFAULT_MODEL, "qwen3-vl-4b", "tiny-qwen2.5-vl", "qwen2.5-vl-3b"]
    assert all(source.name == name for name, source in REGISTRY.items())
    assert find_model("qwen3-vl-4b", random_weights=False) is REGISTRY["qwen3-vl-4b"]


@pytest.mark.parametrize(
    ("name", "model_type"), [(DEFAULT_MODEL, "qwen3_vl"), ("tiny-qwen2.5-vl", "qwen2_5_vl")]
)
def test_embedded_model_ships_with_the_package(name, model_type):
    folder = Path(REGISTRY[name].location)
    shipped = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= shipped
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    assert REGISTRY[name].public_id == name
    assert (folder == EMBEDDED_TOKENIZER) == (name == DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("name", "hub_id", "num_parameters", "mrope", "theta"),
    [
        ("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808, [24, 20, 20], 5e6),
        ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976, [16, 24, 24], 1e6),
    ],
)
def test_shipped_config_is_that_of_the_published_model(name, hub_id, num_parameters, mrope, theta):
    source = REGISTRY[name]
    assert source.location == source.public_id == hub_id
    config = AutoConfig.from_pretrained(source.architecture)
    with torch.device("meta"):
        module = AutoModelForImageTextToText.from_config(config)
    assert module.num_parameters() == num_parameters
    rope = config.text_config.rope_parameters
    assert (rope["mrope_section"], rope["rope_theta"]) == (mrope, theta)


def test_folder_has_a_public_id_without_its_path(checkpoint):
    source = find_model(str(checkpoint), random_weights=False)
    assert source.name == "my-model.v2"
    assert source.location == str(checkpoint)
    assert source.public_id == "My Model.v2"
    assert source.architecture is None


@pytest.mark.parametrize("name", [".", "../My Model.v2"])
def test_relative_folder_is_resolved(checkpoint, monkeypatch, name):
    monkeypatch.chdir(checkpoint)
    source = find_model(name, random_weights=False)
    assert (source.location, source.name) == (str(checkpoint), "my-model.v2")


def test_existing_folder_wins_over_the_same_hub_id(checkpoint, monkeypatch):
    folder = checkpoint.parent / "org" / "name"
    folder.parent.mkdir()
    checkpoint.rename(folder)
    monkeypatch.chdir(folder.parent.parent)
    assert find_model("org/name", random_weights=False).location == str(folder)


def test_folder_without_config_or_weights_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(checkpoint), random_weights=False)
    assert f"model folder {checkpoint}: has no *.safetensors" in str(caught.value)
    assert "--aq-weights random" in str(caught.value)
    assert find_model(str(checkpoint), random_weights=True).location == str(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(checkpoint), random_weights=True)
    assert str(caught.value).startswith(f"model folder {checkpoint}: has no config.json")


@pytest.mark.parametrize("name", ["tiny-qwen3-vl", "tiny-qwen2.5-vl", "org/name", "."])
def test_random_weights_have_a_name_of_their_own(name, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    real, random = (find_model(name, random_weights=random) for random in (False, True))
    assert random.name == f"{real.name}-random"
    assert random.location == real.location


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("Org.1/My_Model-2B", "org.1--my_model-2b"),
        ("a-b/c", "a-b--c"),
        ("a/b-c", "a--b-c"),
    ],
)
def test_hub_id_is_named_by_its_slug(tmp_path, monkeypatch, hub_id, name):
    monkeypatch.chdir(tmp_path)
    source = find_model(hub_id, random_weights=False)
    assert (source.location, source.public_id, source.name) == (hub_id, hub_id, name)


def test_folder_of_a_device_s_name_needs_another_name(checkpoint):
    folder = checkpoint.rename(checkpoint.with_name("AUX"))
    with pytest.raises(UsageError, match=rf"^model folder {folder}: .* with --aq-model-name$"):
        find_model(str(folder), random_weights=False)
    assert find_model(str(folder), random_weights=False, called="mine").name == "mine"


@pytest.mark.parametrize("name", ["nowhere", "a/b/c"])
def test_unknown_name_is_refused_with_what_is_allowed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_model(name, random_weights=False)
    message = str(caught.value)
    assert message.startswith(f"model {name!r} is unknown")
    assert "tiny-qwen3-vl, qwen3-vl-4b, tiny-qwen2.5-vl, qwen2.5-vl-3b" in message
    assert "org/name hub id" in message


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "../nowhere", "~/nowhere"])
def test_path_that_does_not_exist_is_refused(name):
    with pytest.raises(ModelError, match=f"model folder {name}: does not exist"):
        find_model(name, random_weights=False)


def test_misspelt_name_gets_a_suggestion():
    with pytest.raises(UsageError, match=r"did you mean 'qwen3-vl-4b'"):
        find_model("qwen3vl-4b", random_weights=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("~no-such-user/x", "model folder ~no-such-user/x: does not exist: no such user"),
        ("", "the model's name must not be empty; known: tiny-qwen3-vl, "),
        (" ", "the model's name must not be empty; known: tiny-qwen3-vl, "),
    ],
)
def test_names_without_a_folder_or_a_model_are_refused(name, message):
    with pytest.raises(AutoquantError, match=f"^{re.escape(message)}"):
        find_model(name, random_weights=False)
