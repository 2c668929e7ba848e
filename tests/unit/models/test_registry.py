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


def test_embedded_tokenizer_is_the_default_models():
    assert Path(REGISTRY[DEFAULT_MODEL].location) == EMBEDDED_TOKENIZER


def test_4b_has_a_hub_id_and_a_shipped_config():
    source = REGISTRY["qwen3-vl-4b"]
    assert source.location == source.public_id == "Qwen/Qwen3-VL-4B-Instruct"
    text = json.loads(source.architecture.read_text())["text_config"]
    assert (text["num_hidden_layers"], text["hidden_size"]) == (36, 2560)
    assert (text["intermediate_size"], text["num_key_value_heads"]) == (9728, 8)


def test_3b_has_a_hub_id_and_a_shipped_config():
    source = REGISTRY["qwen2.5-vl-3b"]
    assert source.location == source.public_id == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert source.architecture.name == "qwen2.5-vl-3b.json"


def test_3b_config_has_as_many_parameters_as_the_published_model():
    config = AutoConfig.from_pretrained(REGISTRY["qwen2.5-vl-3b"].architecture)
    with torch.device("meta"):
        module = AutoModelForImageTextToText.from_config(config)
    assert type(module).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert module.num_parameters() == 3_754_622_976
    assert config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert config.text_config.rope_parameters["rope_theta"] == 1e6


def test_folder_has_a_public_id_without_its_path(checkpoint):
    source = find_model(str(checkpoint), random_weights=False)
    assert source.name == "my-model.v2"
    assert source.location == str(checkpoint)
    assert source.public_id == "My Model.v2"
    assert source.architecture is None


def test_relative_folder_is_resolved(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert find_model(".", random_weights=False).location == str(checkpoint)
    assert find_model("../My Model.v2", random_weights=False).name == "my-model.v2"


def test_existing_folder_wins_over_the_same_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    source = find_model("org/name", random_weights=True)
    assert source.location == str(tmp_path / "org" / "name")


def test_folder_without_config_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(checkpoint), random_weights=True)
    assert str(caught.value).startswith(f"model folder {checkpoint}: has no config.json")


def test_folder_without_weights_is_refused_unless_they_are_random(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(checkpoint), random_weights=False)
    assert f"model folder {checkpoint}: has no *.safetensors" in str(caught.value)
    assert "--aq-weights random" in str(caught.value)
    assert find_model(str(checkpoint), random_weights=True).location == str(checkpoint)


@pytest.mark.parametrize("name", ["tiny-qwen3-vl", "tiny-qwen2.5-vl", "org/name", "."])
def test_random_weights_have_a_name_of_their_own(name, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    real, random = (find_model(name, random_weights=random) for random in (False, True))
    assert random.name == f"{real.name}-random"
    assert random.location == real.location


def test_hub_id_is_named_by_its_slug(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = find_model("Org.1/My_Model-2B", random_weights=False)
    assert source.location == source.public_id == "Org.1/My_Model-2B"
    assert source.name == "org.1--my_model-2b"


def test_hub_ids_that_differ_in_the_slash_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [find_model(name, random_weights=False).name for name in ("a-b/c", "a/b-c")]
    assert len(set(names)) == 2


@pytest.mark.parametrize("name", ["nowhere", "a/b/c"])
def test_unknown_name_is_refused_with_what_is_allowed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_model(name, random_weights=False)
    message = str(caught.value)
    assert message.startswith(f"model {name!r} is unknown")
    assert "tiny-qwen3-vl, qwen3-vl-4b, tiny-qwen2.5-vl, qwen2.5-vl-3b" in message
    assert "org/name hub id" in message


@pytest.mark.parametrize("name", ["/nowhere/at-all", "./nowhere", "../nowhere", "~/nowhere"])
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
