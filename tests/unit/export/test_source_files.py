"""What an export keeps of its source: files byte for byte, tensors in their dtype."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import put_on_hub, use_hub
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.source_files import keep_tensors, source_folder
from pytest_autoquant.export.checkpoint.tensors import CheckpointTensors
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import REGISTRY, ModelSource
from safetensors.torch import load_file, save_file
from scheme_model import OUT, QKV, batches_of, export_scheme, formats_of

EMBEDDED = Path(REGISTRY["tiny-qwen3-vl"].location)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.language_model.norm.weight"
FP8 = formats_of(("wfp8_afp8", QKV, OUT))
#: Files in the style of transformers 4 and of other tools.
OLDER_FILES = {
    "vocab.json": '{"a": 0}',
    "merges.txt": "#version: 0.2\na b\n",
    "special_tokens_map.json": "{}",
    "LICENSE": "free",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The embedded checkpoint in bf16, one norm in fp16, with older files."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(EMBEDDED, folder, dirs_exist_ok=True)
    for name, text in OLDER_FILES.items():
        (folder / name).write_text(text)
    config = json.loads((EMBEDDED / "config.json").read_text())
    config |= {"rope_theta": 1e6, "torch_dtype": config.pop("dtype")}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((EMBEDDED / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "Qwen2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {NORM: tensors[NORM].half()}, folder / WEIGHTS, {"format": "pt"})
    return ModelSource(name="mine", location=str(folder))


@pytest.fixture(scope="module")
def export(source, tmp_path_factory):
    """The verified export of FP8 groups from the model in fp32."""
    model = load_model(source, device=torch.device("cpu"), dtype=torch.float32)
    folder = tmp_path_factory.mktemp("export")
    batches = batches_of(model, load_captions(None, "small"), 4)
    return folder, export_scheme(model, source, FP8, batches, folder)


def test_files_of_the_source_are_kept_byte_for_byte(source, export):
    folder = export[0]
    for name in (*OLDER_FILES, "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (Path(source.location) / name).read_bytes(), name
    assert not (folder / "training.json").exists()


def test_config_is_the_sources_with_the_quantization_added(source, export):
    config = json.loads((export[0] / "config.json").read_text())
    assert config.pop("quantization_config")["quant_algo"] == "FP8"
    assert config == json.loads((Path(source.location) / "config.json").read_text())
    assert config["rope_theta"] == 1e6


def test_tensors_keep_the_sources_dtype_and_bits(source, export):
    original, stored = load_file(Path(source.location) / WEIGHTS), load_file(export[0] / WEIGHTS)
    quantized = {f"{name}.weight" for name in (*QKV, *OUT)}
    for name in set(original) - quantized:
        assert stored[name].dtype == original[name].dtype, name
        assert torch.equal(stored[name], original[name]), name
    assert stored[NORM].dtype == torch.float16
    assert {stored[name].dtype for name in quantized} == {torch.float8_e4m3fn}
    assert stored[f"{QKV[0]}.weight_scale"].dtype == torch.float32
    verified = export[1]
    assert verified.num_identical == len(original) - len(quantized)
    assert verified.source_bytes == (Path(source.location) / WEIGHTS).stat().st_size
    assert verified.stored_bytes < verified.source_bytes


def test_shards_and_their_index_are_rewritten(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "export"
    values = {"a.weight": torch.tensor([1.5, 2.0]), "b.weight": torch.tensor([3.0, 0.1])}
    merged = {"c.weight": torch.tensor([4.0, 0.25])}
    for each in (source, folder):
        each.mkdir()
    half = {name: tensor.bfloat16() for name, tensor in values.items()}
    save_file(half, source / WEIGHTS)
    loaded = {name: tensor.float() for name, tensor in half.items()}
    files = {"a.weight": "1.safetensors", "b.weight": "2.safetensors", "c.weight": "2.safetensors"}
    save_file({"a.weight": loaded["a.weight"]}, folder / "1.safetensors")
    save_file({"b.weight": loaded["b.weight"], **merged}, folder / "2.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": files}))
    keep_tensors(CheckpointTensors(source), folder)
    stored = load_file(folder / "1.safetensors") | load_file(folder / "2.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items()} == dict.fromkeys(
        files, torch.bfloat16
    )
    assert all(torch.equal(stored[name], half[name]) for name in half)
    index = json.loads((folder / INDEX).read_text())
    assert index == {"metadata": {"total_size": 12}, "weight_map": files}
    assert sorted(path.name for path in folder.iterdir()) == sorted({*files.values(), INDEX})


def test_tensor_that_differs_from_the_source_stays_for_the_verification_to_find(tmp_path):
    save_file({"a.weight": torch.tensor([1.0])}, tmp_path / "source.safetensors")
    folder = tmp_path / "export"
    folder.mkdir()
    save_file({"a.weight": torch.tensor([2.0], dtype=torch.float64)}, folder / WEIGHTS)
    keep_tensors(CheckpointTensors(tmp_path), folder)
    assert load_file(folder / WEIGHTS)["a.weight"].tolist() == [2.0]


def test_source_of_random_weights_is_none(tiny):
    record = replace(tiny.record, weights="random")
    assert source_folder(replace(tiny, record=record), REGISTRY["tiny-qwen3-vl"]) is None


def test_source_of_a_hub_id_is_its_cached_snapshot(tiny, tmp_path, monkeypatch):
    use_hub(monkeypatch, tmp_path)
    hub = ModelSource(name="org--it", location="org/it")
    with pytest.raises(ExportError, match=r"^model org--it: the files of org/it cannot be found: "):
        source_folder(tiny, hub)
    loaded, later = (put_on_hub(tmp_path, "org/it", EMBEDDED, commit * 40) for commit in "ab")
    for commit, snapshot in (("a" * 40, loaded), (None, later)):
        record = replace(tiny.record, commit=commit)
        assert source_folder(replace(tiny, record=record), hub) == snapshot
