"""Which model a name stands for: the registry, a folder or a hub id."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from pytest_autoquant.errors import ModelError, UsageError
from pytest_autoquant.models.layers import architecture_linears
from pytest_autoquant.models.registry import DEFAULT_MODEL, EMBEDDED_TOKENIZER, REGISTRY, find_model
from transformers import AutoConfig, AutoModelForImageTextToText


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "My Model.v2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_registry_knows_the_embedded_models_and_those_they_stand_in_for():
    assert list(REGISTRY) == [DEFAULT_MODEL, "qwen3-vl-4b", "tiny-qwen2.5-vl", "qwen2.5-vl-3b"]
    assert all(source.name == name for name, source in REGISTRY.items())
    assert find_model("qwen3-vl-4b", random_weights=False) is REGISTRY["qwen3-vl-4b"]


@pytest.mark.parametrize(
    ("name", "model_type"), [(DEFAULT_MODEL, "qwen3_vl"), ("tiny-qwen2.5-vl", "qwen2_5_vl")]
)
def test_an_embedded_model_ships_with_the_package(name, model_type):
    folder = Path(REGISTRY[name].location)
    shipped = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= shipped
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    assert REGISTRY[name].public_id == name


def test_the_default_models_tokenizer_stands_in_for_others():
    assert Path(REGISTRY[DEFAULT_MODEL].location) == EMBEDDED_TOKENIZER


def test_the_4b_model_comes_from_the_hub_and_its_architecture_from_here():
    source = REGISTRY["qwen3-vl-4b"]
    assert source.location == source.public_id == "Qwen/Qwen3-VL-4B-Instruct"
    text = json.loads(source.architecture.read_text())["text_config"]
    assert (text["num_hidden_layers"], text["hidden_size"]) == (36, 2560)
    assert (text["intermediate_size"], text["num_key_value_heads"]) == (9728, 8)


def test_the_3b_model_comes_from_the_hub_and_its_architecture_from_here():
    source = REGISTRY["qwen2.5-vl-3b"]
    assert source.location == source.public_id == "Qwen/Qwen2.5-VL-3B-Instruct"
    linears = architecture_linears(source, trust_remote_code=False)
    shapes = Counter(
        (linear.name.rpartition(".")[2], linear.out_features, linear.in_features)
        for linear in linears
    )
    assert shapes == {
        ("q_proj", 2048, 2048): 36,
        ("k_proj", 256, 2048): 36,
        ("v_proj", 256, 2048): 36,
        ("o_proj", 2048, 2048): 36,
        ("gate_proj", 11008, 2048): 36,
        ("up_proj", 11008, 2048): 36,
        ("down_proj", 2048, 11008): 36,
    }


def test_the_3b_model_has_the_parameters_of_the_published_one():
    config = AutoConfig.from_pretrained(REGISTRY["qwen2.5-vl-3b"].architecture)
    with torch.device("meta"):
        module = AutoModelForImageTextToText.from_config(config)
    assert type(module).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert module.num_parameters() == 3_754_622_976
    assert config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert config.text_config.rope_parameters["rope_theta"] == 1e6


def test_a_folder_is_named_after_itself_and_keeps_its_path_to_itself(checkpoint):
    source = find_model(str(checkpoint), random_weights=False)
    assert source.name == "my-model.v2"
    assert source.location == str(checkpoint)
    assert source.public_id == "My Model.v2"
    assert source.architecture is None


def test_a_relative_folder_is_resolved(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert find_model(".", random_weights=False).location == str(checkpoint)
    assert find_model("../My Model.v2", random_weights=False).name == "my-model.v2"


def test_a_folder_wins_over_a_hub_id_of_the_same_spelling(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    source = find_model("org/name", random_weights=True)
    assert source.location == str(tmp_path / "org" / "name")


def test_a_folder_without_a_config_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(checkpoint), random_weights=True)
    assert str(caught.value).startswith(f"model folder {checkpoint}: has no config.json")


def test_a_folder_without_weights_is_refused_unless_they_are_random(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(checkpoint), random_weights=False)
    assert f"model folder {checkpoint}: has no *.safetensors" in str(caught.value)
    assert "--aq-weights random" in str(caught.value)
    assert find_model(str(checkpoint), random_weights=True).location == str(checkpoint)


@pytest.mark.parametrize("name", ["tiny-qwen3-vl", "tiny-qwen2.5-vl", "org/name", "."])
def test_random_weights_are_never_taken_for_the_checkpoint(name, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    real, random = (find_model(name, random_weights=random) for random in (False, True))
    assert random.name == f"{real.name}-random"
    assert random.location == real.location


def test_a_hub_id_is_kept_and_named_by_its_slug(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = find_model("Org.1/My_Model-2B", random_weights=False)
    assert source.location == source.public_id == "Org.1/My_Model-2B"
    assert source.name == "org.1--my_model-2b"


def test_hub_ids_that_differ_only_in_their_slash_do_not_share_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [find_model(name, random_weights=False).name for name in ("a-b/c", "a/b-c")]
    assert len(set(names)) == 2


@pytest.mark.parametrize("name", ["nowhere", "a/b/c"])
def test_anything_else_is_unknown_and_said_what_would_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_model(name, random_weights=False)
    message = str(caught.value)
    assert message.startswith(f"model {name!r} is unknown")
    assert "tiny-qwen3-vl, qwen3-vl-4b, tiny-qwen2.5-vl, qwen2.5-vl-3b" in message
    assert "org/name hub id" in message


@pytest.mark.parametrize("name", ["/nowhere/at-all", "./nowhere", "../nowhere", "~/nowhere"])
def test_a_path_to_nothing_is_no_hub_id(name):
    with pytest.raises(ModelError, match=f"model folder {name}: does not exist"):
        find_model(name, random_weights=False)


def test_a_misspelt_registry_name_gets_a_guess():
    with pytest.raises(UsageError, match=r"did you mean 'qwen3-vl-4b'"):
        find_model("qwen3vl-4b", random_weights=False)
