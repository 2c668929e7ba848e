"""Checkpoints that are quantized already, by what they declare and by what they hold."""

import json
import re
from pathlib import Path

import pytest
import torch
from builders import change_weights, put_on_hub, use_hub
from pytest_autoquant.errors import ModelError
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import ModelSource, find_model

LINEAR = "model.layers.0.self_attn.q_proj"
FP8 = torch.float8_e4m3fn


def scaled(weight, dtype, name, **scales):
    return {f"{LINEAR}.{name}": weight.to(dtype), **{f"{LINEAR}.{k}": v for k, v in scales.items()}}


def of_bitsandbytes(weight):
    packed = torch.zeros(weight.numel() // 2, 1)
    return scaled(
        packed,
        torch.uint8,
        "weight",
        **{
            "weight.absmax": torch.ones(64),
            "weight.quant_map": torch.ones(16),
            "weight.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=torch.uint8),
        },
    )


def of_gptq(weight):
    packed = torch.zeros(weight.shape[1] // 8, weight.shape[0])
    zeros = torch.zeros(1, weight.shape[0] // 8, dtype=torch.int32)
    scales = torch.ones(1, weight.shape[0], dtype=torch.float16)
    return scaled(packed, torch.int32, "qweight", qzeros=zeros, scales=scales)


def of_compressed_tensors(weight):
    packed = torch.zeros(weight.shape[0], weight.shape[1] // 8)
    scale = torch.ones(weight.shape[0], 1, dtype=torch.bfloat16)
    return scaled(packed, torch.int32, "weight_packed", weight_scale=scale)


#: Declaration, tensors in place of a linear's weight, and what the message says of either.
MAKERS = {
    "modelopt": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
        lambda w: scaled(w, FP8, "weight", weight_scale=torch.ones(()), input_scale=torch.ones(())),
        "modelopt, quant_algo FP8",
        f"it holds {LINEAR}.input_scale, as ModelOpt or another maker of scales writes it",
    ),
    "modelopt nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        lambda w: scaled(w[:, ::2], torch.uint8, "weight", weight_scale=torch.ones(64, 4).to(FP8)),
        "modelopt, quant_algo NVFP4",
        f"it holds {LINEAR}.weight_scale, as ModelOpt or another maker of scales writes it",
    ),
    "fine-grained fp8": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        lambda w: scaled(w, FP8, "weight", weight_scale_inv=torch.ones(1, 1)),
        "fp8, fmt e4m3",
        f"it holds {LINEAR}.weight_scale_inv, as ModelOpt or another maker of scales writes it",
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        of_compressed_tensors,
        "compressed-tensors, format pack-quantized",
        f"it holds {LINEAR}.weight_packed, as compressed-tensors writes it",
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4},
        of_gptq,
        "gptq, bits 4",
        f"it holds {LINEAR}.qweight, as GPTQ or AWQ writes it",
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
        of_bitsandbytes,
        "bitsandbytes, load_in_4bit True",
        f"it holds {LINEAR}.weight.absmax, as bitsandbytes writes it",
    ),
    "scales dropped": (
        {"quant_method": "fp8"},
        lambda w: scaled(w, FP8, "weight"),
        "fp8",
        f"1 tensor such as {LINEAR}.weight stored as F8_E4M3",
    ),
}


def quantize(folder, tensors_of):
    change_weights(folder, lambda w: w.update(tensors_of(w.pop(f"{LINEAR}.weight"))))


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def refusal(source):
    with pytest.raises(ModelError) as caught:
        load_model(source, device=torch.device("cpu"), dtype=torch.float32)
    return re.fullmatch(
        rf"model {source.name}: the checkpoint is already quantized: (.+); give the 16-bit "
        "checkpoint that it was made from",
        str(caught.value),
    )[1]


@pytest.mark.parametrize("maker", MAKERS)
def test_quantized_checkpoint_is_refused_with_and_without_its_declaration(checkpoint, maker):
    declaration, tensors_of, declared, stored = MAKERS[maker]
    quantize(checkpoint, tensors_of)
    source = find_model(str(checkpoint), random_weights=False)
    assert refusal(source) == stored
    edit_config(checkpoint, lambda config: config.update(quantization_config=declaration))
    assert refusal(source) == f"config.json says {declared}"


@pytest.mark.parametrize(
    "place",
    [
        lambda config: config.update(text_config={"quantization_config": {"quant_method": "awq"}}),
        lambda config: config.update(compression_config={"quant_method": "awq"}),
    ],
    ids=["text_config", "compression_config"],
)
def test_declaration_is_found_wherever_it_stands(checkpoint, place):
    edit_config(checkpoint, place)
    assert refusal(find_model(str(checkpoint), random_weights=False)) == "config.json says awq"


def test_file_of_modelopt_alone_is_a_declaration(checkpoint):
    path = checkpoint / "hf_quant_config.json"
    path.write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    source = find_model(str(checkpoint), random_weights=False)
    assert refusal(source) == "hf_quant_config.json says modelopt, quant_algo FP8"


def test_null_declaration_and_byte_masks_are_those_of_a_16_bit_checkpoint(checkpoint):
    edit_config(checkpoint, lambda config: config.update(quantization_config=None))
    mask = {"model.layers.0.self_attn.masked_bias": torch.ones(4, 4, dtype=torch.uint8)}
    change_weights(checkpoint, lambda w: w.update(mask))
    source = find_model(str(checkpoint), random_weights=False)
    loaded = load_model(source, device=torch.device("cpu"), dtype=torch.float32)
    assert len(loaded.linears) == 7


def test_shards_of_a_hub_checkpoint_are_looked_at(checkpoint, tmp_path, monkeypatch):
    """transformers itself loads the weights without scales and reports nothing unexpected."""
    quantize(checkpoint, MAKERS["scales dropped"][1])
    weights = checkpoint / "model.safetensors"
    shard = weights.rename(checkpoint / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(shard, framework="np") as file:
        index = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), shard.name)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    put_on_hub(tmp_path, "org/mine", checkpoint, "a" * 40)
    use_hub(monkeypatch, tmp_path)
    source = ModelSource(name="org--mine", location="org/mine")
    assert not Path(source.location).exists()
    assert "q_proj.weight stored as F8_E4M3" in refusal(source)
