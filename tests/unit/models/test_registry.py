"""Model names: registry entries, folders and hub ids."""

import json
import re
from pathlib import Path

import pytest
from pytest_autoquant.errors import AutoquantError, ModelError, UsageError
from pytest_autoquant.models.layers import load_architecture
from pytest_autoquant.models.registry import DEFAULT_MODEL, EMBEDDED_TOKENIZER, REGISTRY, find_model
from transformers import AutoConfig

#: Name of the hub repository, all parameters of the checkpoint as the Hugging Face Hub counts them
#: in its safetensors files (``safetensors.total`` of the model's page; ``total_size`` in the index
#: of its weight files is twice that, in bf16), decoder layers and vision layers.
PUBLISHED = {
    "qwen3-vl-2b": ("Qwen3-VL-2B", 2_127_532_032, 28, 24),
    "qwen3-vl-4b": ("Qwen3-VL-4B", 4_437_815_808, 36, 24),
    "qwen3-vl-8b": ("Qwen3-VL-8B", 8_767_123_696, 36, 27),
    "qwen3-vl-32b": ("Qwen3-VL-32B", 33_357_390_064, 64, 27),
    "qwen3-vl-30b-a3b": ("Qwen3-VL-30B-A3B", 31_070_754_032, 48, 27),
    "qwen3-vl-235b-a22b": ("Qwen3-VL-235B-A22B", 235_670_022_896, 94, 27),
    "qwen2.5-vl-3b": ("Qwen2.5-VL-3B", 3_754_622_976, 36, 32),
    "qwen2.5-vl-7b": ("Qwen2.5-VL-7B", 8_292_166_656, 28, 32),
}


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "My Model.v2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_registry_entries():
    assert set(REGISTRY) == {DEFAULT_MODEL, "tiny-qwen2.5-vl", *PUBLISHED}
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_config_is_that_of_the_published_model(name):
    hub_id, num_parameters, decoder_layers, vision_layers = PUBLISHED[name]
    source = REGISTRY[name]
    assert source.location == source.public_id == f"Qwen/{hub_id}-Instruct"
    module = load_architecture(source, trust_remote_code=False).module
    assert module.num_parameters() == num_parameters
    assert len(module.model.language_model.layers) == decoder_layers
    assert len(module.model.visual.blocks) == vision_layers
    rope = module.config.text_config.rope_parameters
    is_3 = name.startswith("qwen3")
    mrope, theta = ([24, 20, 20], 5e6) if is_3 else ([16, 24, 24], 1e6)
    assert (rope["mrope_section"], rope["rope_theta"]) == (mrope, theta)


@pytest.mark.parametrize(
    ("name", "width"), [("qwen3-vl-30b-a3b", 768), ("qwen3-vl-235b-a22b", 1536)]
)
def test_mixtures_route_each_token_to_8_of_128_experts(name, width):
    config = AutoConfig.from_pretrained(REGISTRY[name].architecture).text_config
    assert (config.num_experts, config.num_experts_per_tok) == (128, 8)
    assert config.moe_intermediate_size == width


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


@pytest.mark.parametrize(
    ("name", "random_weights", "revision"),
    [
        ("qwen3-vl-4b", False, "v1"),
        ("qwen3-vl-4b", True, None),
        ("org/name", False, "v1"),
        ("org/name", True, "v1"),  # its config is the hub's
        ("tiny-qwen3-vl", False, None),
        (".", False, None),
    ],
)
def test_revision_is_of_what_is_read_from_the_hub(
    checkpoint, monkeypatch, name, random_weights, revision
):
    monkeypatch.chdir(checkpoint)
    found = find_model(name, random_weights=random_weights, revision="v1")
    assert found.revision == revision
    assert found.reads_hub(random_weights=random_weights) == (revision is not None)


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
    assert ", ".join(REGISTRY) in message
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
