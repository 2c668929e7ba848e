"""Real exports are clean, and every way to break one is named: the rule, the tensor, nothing else.

The exports are made by ModelOpt on the CPU and then edited: ``Checkpoint`` reads and writes
safetensors by hand, for there is no float8 in numpy.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.errors import ModelError
from pytest_autoquant.export import vllm_rules as loadability
from pytest_autoquant.export.checkpoint_files import INDEX, WEIGHTS
from pytest_autoquant.export.vllm_rules import CONFIG, HF_CONFIG, RULES, check_export
from pytest_autoquant.models.layers import language_model_linears
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import REGISTRY, find_model

FP8 = {"num_bits": (4, 3), "axis": None}
FP8_CHANNEL = {"num_bits": (4, 3), "axis": 0}
FP8_TOKEN = {"num_bits": (4, 3), "type": "dynamic", "block_sizes": {-1: None}}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
MXFP8 = {"num_bits": (4, 3), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
INT8 = {"num_bits": 8, "axis": 0}
INT4 = {"num_bits": 4, "block_sizes": {-1: 64, "type": "static"}}

LAYER = "model.language_model.layers.0"
Q, K, V, OUT = (f"{LAYER}.self_attn.{each}_proj" for each in "qkvo")
GATE, UP, DOWN = (f"{LAYER}.mlp.{each}_proj" for each in ("gate", "up", "down"))
VISION = "model.visual.blocks.0.attn.proj"
MIXED_GROUPS = (".mlp.", "layers.1.")


def quantizers(name, weight, activation=None):
    """Config entries that quantize one linear."""
    wanted = {"weight_quantizer": weight, "input_quantizer": activation}
    return [
        {"quantizer_name": f"{name}.{kind}", "cfg": cfg, "enable": True}
        for kind, cfg in wanted.items()
        if cfg is not None
    ]


def fp8(name):
    return quantizers(name, FP8, FP8)


def fp8_in_some_groups(name):
    return fp8(name) if any(group in name for group in MIXED_GROUPS) else []


def fp8_and_cache(name):
    attention = name.removesuffix("q_proj")
    cache = [
        {"quantizer_name": f"{attention}{kind}_bmm_quantizer", "cfg": FP8, "enable": True}
        for kind in ("k", "v")
        if attention != name
    ]
    return [*fp8(name), *cache]


def two_formats(name):
    return fp8(name) if ".mlp." in name else quantizers(name, NVFP4, NVFP4)


RECIPES = {
    "fp8": fp8,
    "mixed": fp8_in_some_groups,
    "plain": lambda name: [],
    "cache": fp8_and_cache,
    "channel": lambda name: quantizers(name, FP8_CHANNEL, FP8_TOKEN),
    "formats": two_formats,
    "nvfp4": lambda name: quantizers(name, NVFP4, NVFP4),
    "w4a16_nvfp4": lambda name: quantizers(name, NVFP4),
    "mxfp8": lambda name: quantizers(name, MXFP8, MXFP8),
    "blocks": lambda name: quantizers(name, {"num_bits": (4, 3), "block_sizes": {-1: 64, -2: 64}}),
    "one": lambda name: fp8(name) if name == DOWN else [],
    "int8": lambda name: quantizers(name, INT8),
    "q_only": lambda name: fp8(name) if name.endswith("q_proj") else [],
    "gate_only": lambda name: fp8(name) if name.endswith("gate_proj") else [],
    "cache_only": lambda name: [each for each in fp8_and_cache(name) if each["cfg"] is FP8][2:],
}


def export_to(folder, module, rows, recipe, algorithm="max"):
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    module.config.architectures = [type(module).__name__]
    entries = [
        entry for linear in language_model_linears(module) for entry in RECIPES[recipe](linear.name)
    ]

    def calibrate(model):
        for row in rows:
            model(input_ids=torch.tensor([row]))

    if entries:
        config = [{"quantizer_name": "*", "enable": False}, *entries]
        mtq.quantize(module, {"quant_cfg": config, "algorithm": algorithm}, calibrate)
    with torch.no_grad():
        export_hf_checkpoint(module, export_dir=folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Make an export of Qwen3-VL once per recipe, and return its folder."""
    made = {}

    def make(recipe):
        if recipe not in made:
            loaded = load_model(
                find_model("tiny-qwen3-vl", random_weights=False),
                device=torch.device("cpu"),
                dtype=torch.bfloat16,
            )
            rows = loaded.tokenize(load_captions(None, "small").lines[:4])
            folder = tmp_path_factory.mktemp(recipe)
            export_to(folder, loaded.module, rows, recipe, None if recipe == "mxfp8" else "max")
            made[recipe] = folder
        return made[recipe]

    return make


def qwen2_5_vl():
    """The embedded Qwen2.5-VL if there is one, else a random one as small."""
    source = REGISTRY.get("tiny-qwen2.5-vl")
    if source is not None and (Path(source.location) / WEIGHTS).exists():
        return load_model(source, device=torch.device("cpu"), dtype=torch.bfloat16).module
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 64,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).eval()


@pytest.fixture(scope="module")
def exported_qwen2_5(tmp_path_factory):
    made = {}

    def make(recipe):
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp(f"qwen2_5_{recipe}")
            export_to(made[recipe], qwen2_5_vl(), [[1, 2, 3], [4, 5, 6, 7]], recipe)
        return made[recipe]

    return make


class Checkpoint:
    """An export in memory: configs as dicts, tensors as ``name: (dtype, shape, bytes)``."""

    def __init__(self, folder):
        self.folder = folder
        self.config = json.loads((folder / CONFIG).read_text())
        path = folder / HF_CONFIG
        self.hf_config = json.loads(path.read_text()) if path.exists() else None
        content = (folder / WEIGHTS).read_bytes()
        begin = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:begin])
        self.metadata = header.pop("__metadata__", None)
        self.tensors = {
            name: (each["dtype"], each["shape"], content[begin:][slice(*each["data_offsets"])])
            for name, each in header.items()
        }

    @property
    def inner(self):
        return self.config["quantization_config"]

    @property
    def hf_inner(self):
        return self.hf_config["quantization"]

    def drop(self, *names):
        for name in names:
            del self.tensors[name]

    def put(self, name, *values, dtype="F32", shape=None):
        """Store a tensor of float32 values, or of zeros in another dtype."""
        shape = [len(values)] if shape is None else shape
        data = struct.pack(f"<{len(values)}f", *values)
        bits = {"F32": 32, "F64": 64, "BF16": 16}.get(dtype, 8)
        data = data if dtype == "F32" else bytes(prod(shape) * bits // 8)
        self.tensors[name] = (dtype, shape, data)

    def cast(self, name, dtype):
        """Store zeros of the same shape in another dtype."""
        self.put(name, dtype=dtype, shape=self.tensors[name][1])

    def make_plain(self, *modules):
        for module in modules:
            self.cast(f"{module}.weight", "BF16")
            self.drop(f"{module}.weight_scale", f"{module}.input_scale")

    def make_fp8(self, *modules):
        for module in modules:
            self.cast(f"{module}.weight", "F8_E4M3")
            self.put(f"{module}.weight_scale", 0.5, shape=[])
            self.put(f"{module}.input_scale", 0.5, shape=[])

    def exclude(self, *patterns):
        self.inner["ignore"] += patterns
        self.hf_inner["exclude_modules"] += patterns

    def include(self, *patterns):
        for pattern in patterns:
            self.inner["ignore"].remove(pattern)
            self.hf_inner["exclude_modules"].remove(pattern)

    def set_algorithm(self, algorithm):
        self.inner["quant_algo"] = self.hf_inner["quant_algo"] = algorithm

    def set_layers(self, layers):
        layers = {name: {"quant_algo": algorithm} for name, algorithm in layers.items()}
        self.set_algorithm("MIXED_PRECISION")
        self.inner["quantized_layers"] = self.hf_inner["quantized_layers"] = layers

    def layers(self):
        return {
            name: each["quant_algo"] for name, each in self.hf_inner["quantized_layers"].items()
        }

    def save(self, folder=None):
        """Write to a folder, over the one it came from if none is given."""
        folder = folder or self.folder
        folder.mkdir(exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config))
        if self.hf_config is None:
            (folder / HF_CONFIG).unlink(missing_ok=True)
        else:
            (folder / HF_CONFIG).write_text(json.dumps(self.hf_config))
        (folder / WEIGHTS).write_bytes(safetensors(self.tensors))
        return folder


def safetensors(tensors):
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [end, end := end + len(data)],
        }
    start = json.dumps(header).encode()
    content = b"".join(data for _, _, data in tensors.values())
    return struct.pack("<Q", len(start)) + start + content


@pytest.fixture
def checkpoint(exported, tmp_path):
    """Return an export by recipe, to be edited and saved elsewhere."""

    def load(recipe):
        found = Checkpoint(exported(recipe))
        found.folder = tmp_path / recipe
        return found

    return load


def broken(folder):
    """The rules an export breaks and where, each at most once."""
    found = [(violation.rule, violation.tensor) for violation in check_export(folder)]
    assert len(found) == len(set(found))
    return set(found)


# --- what ModelOpt exports

CLEAN = (
    *("fp8", "mixed", "plain", "one", "cache", "channel"),
    *("formats", "nvfp4", "w4a16_nvfp4", "mxfp8", "blocks"),
)
DECLARED = {
    "fp8": ("FP8", 42),
    "mixed": ("FP8", 22),
    "plain": (None, 0),
    "one": ("FP8", 1),
    "cache": ("FP8", 42),
    "channel": ("FP8_PER_CHANNEL_PER_TOKEN", 42),
    "formats": ("MIXED_PRECISION", 42),
    "nvfp4": ("NVFP4", 42),
    "w4a16_nvfp4": ("W4A16_NVFP4", 42),
    "mxfp8": ("MXFP8", 42),
    "blocks": ("FP8_PB_WO", 42),
}


@pytest.mark.parametrize("recipe", CLEAN)
def test_what_modelopt_exports_is_clean(exported, recipe):
    export = loadability.read_export(exported(recipe))
    linears = list(export.linears())
    algorithm = export.quantization.algorithm if export.quantization else None
    quantized = sum(linear.is_quantized for linear in linears)
    assert (len(linears), algorithm, quantized) == (42, *DECLARED[recipe])
    assert broken(exported(recipe)) == set()


@pytest.mark.parametrize("recipe", ["fp8", "mixed", "plain"])
def test_qwen2_5_vl_is_exported_under_older_names_and_clean(exported_qwen2_5, recipe):
    export = loadability.read_export(exported_qwen2_5(recipe))
    quantized = {linear.name for linear in export.linears() if linear.is_quantized}
    assert "model.layers.0.self_attn.q_proj.weight" in export.tensors
    assert any(name.startswith("visual.") for name in export.tensors)
    assert ("model.layers.0.mlp.up_proj" in quantized) is (recipe != "plain")
    assert ("model.layers.0.self_attn.q_proj" in quantized) is (recipe == "fp8")
    assert broken(exported_qwen2_5(recipe)) == set()


def test_qwen2_5_vl_is_checked_under_its_older_names(exported_qwen2_5, tmp_path):
    found = Checkpoint(exported_qwen2_5("fp8"))
    found.drop("model.layers.0.mlp.down_proj.weight_scale")
    found.cast("visual.blocks.0.attn.proj.weight", "F8_E4M3")
    found.put("model.layers.1.mlp.up_proj.input_scale", -1.0)
    assert broken(found.save(tmp_path / "x")) == {
        ("exclusion", "model.layers.0.mlp.down_proj.weight_scale"),
        ("scales", "model.layers.1.mlp.up_proj.input_scale"),
        ("vision", "visual.blocks.0.attn.proj.weight"),
    }


@pytest.mark.parametrize("layers", [{10}, set(range(12)) - {1}, {1, 2}], ids=repr)
def test_whole_layers_are_excluded_among_others_whose_numbers_begin_alike(
    tmp_path, monkeypatch, layers
):
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(find_model("tiny-qwen3-vl", random_weights=False).location)
    config.text_config.num_hidden_layers = 12
    torch.manual_seed(0)
    module = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()

    def whole_layers(name):
        return fp8(name) if int(name.split(".")[3]) in layers else []

    monkeypatch.setitem(RECIPES, "layers", whole_layers)
    export_to(tmp_path, module, [[1, 2, 3]], "layers")
    linears = loadability.read_export(tmp_path).linears()
    quantized = {int(linear.name.split(".")[3]) for linear in linears if linear.is_quantized}
    assert quantized == layers
    assert broken(tmp_path) == set()


def test_int8_is_not_loaded(exported):
    assert broken(exported("int8")) == {("algorithm", "quant_algo")}


@pytest.mark.parametrize(("recipe", "first"), [("q_only", Q), ("gate_only", GATE)])
def test_modelopt_exports_half_of_what_vllm_fuses(exported, recipe, first):
    assert broken(exported(recipe)) == {
        ("fusion", f"{first.replace('.0.', f'.{layer}.')}.weight") for layer in range(6)
    }


def test_a_quantized_cache_alone_names_no_algorithm(exported):
    assert broken(exported("cache_only")) == {("algorithm", "quant_algo")}


# --- tampered

TAMPERED = {}


def tamper(recipe, *expected):
    """Register a way to break an export, and everything that must be found then."""

    def register(edit):
        TAMPERED[edit.__name__] = (recipe, edit, set(expected))
        return edit

    return register


@tamper("fp8", ("exclusion", f"{DOWN}.weight_scale"))
def no_weight_scale(it):
    it.drop(f"{DOWN}.weight_scale")


@tamper("fp8", ("scales", f"{DOWN}.input_scale"))
def no_input_scale(it):
    it.drop(f"{DOWN}.input_scale")


@tamper("fp8", ("exclusion", f"{DOWN}.weight_scale"), ("scales", f"{DOWN}.input_scale"))
def no_scales(it):
    it.drop(f"{DOWN}.weight_scale", f"{DOWN}.input_scale")


@tamper("fp8", ("exclusion", f"{DOWN}.weight_scale"))
def not_quantized_and_not_excluded(it):
    it.make_plain(DOWN)


@tamper("fp8", ("exclusion", f"{K}.weight_scale"))
def a_third_of_qkv_not_quantized_and_not_excluded(it):
    it.make_plain(K)


@tamper("mixed", ("exclusion", f"{OUT}.weight"))
def quantized_and_excluded(it):
    it.make_fp8(OUT)


@tamper("fp8", ("exclusion", f"{DOWN}.weight"))
def excluded_by_name(it):
    it.exclude(DOWN)


@tamper("fp8", ("exclusion", f"{DOWN}.weight"))
def excluded_by_prefix(it):
    it.exclude(f"{LAYER}.mlp.down*")


@tamper("fp8", ("exclusion", f"{DOWN}.weight"))
def excluded_by_glob(it):
    it.exclude("*.layers.0.*down_proj")


@tamper("fp8", ("exclusion", f"{DOWN}.weight"))
def excluded_by_part_of_its_name(it):
    it.exclude("layers.0.mlp.down")


@tamper("fp8", *(("exclusion", f"{module}.weight") for module in (GATE, UP)))
def excluded_by_the_name_of_the_fused_layer(it):
    it.exclude(f"{LAYER}.mlp.gate_up_proj")


@tamper("mixed", *(("exclusion", f"{module}.weight_scale") for module in (Q, K, V, OUT)))
def plain_and_no_longer_excluded(it):
    it.include(f"{LAYER}.self_attn*")


@tamper("mixed", *(("exclusion", f"{module}.weight_scale") for module in (Q, K, V)))
def excluded_by_globs_that_do_not_match_what_is_fused(it):
    it.include(f"{LAYER}.self_attn*")
    it.exclude(*(f"*layers.0.self_attn.{each}_pro?" for each in "qkvo"))


@tamper("fp8", ("exclusion", f"{DOWN}.weight"))
def an_excluded_weight_that_stayed_quantized_without_scales(it):
    it.exclude(DOWN)
    it.drop(f"{DOWN}.weight_scale", f"{DOWN}.input_scale")


@tamper("fp8", *(("exclusion", f"{DOWN}.{kind}_scale") for kind in ("weight", "input")))
def scales_of_a_weight_that_is_gone(it):
    it.drop(f"{DOWN}.weight")


@tamper("fp8", ("fusion", f"{Q}.weight"))
def half_of_qkv(it):
    it.make_plain(K, V)
    it.exclude(K, V)


@tamper("fp8", ("fusion", f"{GATE}.weight"))
def half_of_gate_and_up(it):
    it.make_plain(UP)
    it.exclude(UP)


@tamper("mixed", ("fusion", f"{Q}.weight"))
def one_of_three_excluded_twice(it):
    it.exclude(Q)


@tamper("fp8", ("scales", f"{DOWN}.weight"))
def a_weight_of_another_float8(it):
    it.cast(f"{DOWN}.weight", "F8_E5M2")


@tamper("fp8", ("scales", f"{DOWN}.weight"))
def a_weight_that_was_not_quantized_though_it_has_scales(it):
    it.cast(f"{DOWN}.weight", "BF16")


@tamper("fp8", ("scales", f"{DOWN}.weight"))
def an_int8_weight(it):
    it.cast(f"{DOWN}.weight", "I8")


@tamper("channel", ("scales", f"{DOWN}.weight"))
def a_weight_of_another_float8_per_channel(it):
    it.cast(f"{DOWN}.weight", "F8_E5M2")


@tamper("fp8", ("scales", f"{DOWN}.weight_scale"), ("scales", f"{UP}.input_scale"))
def scales_of_another_dtype(it):
    it.tensors[f"{DOWN}.weight_scale"] = ("I32", [], struct.pack("<f", 1))
    it.tensors[f"{UP}.input_scale"] = ("F64", [], struct.pack("<ff", 1, 1))


@tamper("fp8", ("scales", f"{DOWN}.weight_scale"), ("scales", f"{UP}.input_scale"))
def scales_of_another_shape(it):
    it.put(f"{DOWN}.weight_scale", *[1.0] * 128)
    it.put(f"{UP}.input_scale", shape=[0])


for word, value in (("nan", "nan"), ("inf", "inf"), ("zero", 0), ("negative", -0.5)):
    for kind in ("weight", "input"):

        def edit(it, kind=kind, value=float(value)):
            it.put(f"{DOWN}.{kind}_scale", value)

        edit.__name__ = f"{word}_{kind}_scale"
        tamper("fp8", ("scales", f"{DOWN}.{kind}_scale"))(edit)


@tamper("channel", ("scales", f"{DOWN}.weight_scale"), ("scales", f"{UP}.weight_scale"))
def scales_per_channel_of_another_length(it):
    it.put(f"{DOWN}.weight_scale", *[1.0] * 127)
    it.put(f"{UP}.weight_scale", *[1.0] * 384, shape=[384, 1])


@tamper("channel", ("scales", f"{DOWN}.weight_scale"))
def one_nan_among_the_scales_per_channel(it):
    it.put(f"{DOWN}.weight_scale", *[1.0] * 127, float("nan"))


@tamper("channel", ("scales", f"{DOWN}.input_scale"))
def an_input_scale_where_tokens_have_their_own(it):
    it.put(f"{DOWN}.input_scale", 1.0)


@tamper("channel", ("exclusion", f"{DOWN}.weight_scale"))
def no_weight_scale_per_channel(it):
    it.drop(f"{DOWN}.weight_scale")


@tamper("nvfp4", ("scales", f"{DOWN}.weight_scale_2"), ("scales", f"{UP}.input_scale"))
def float_scales_of_nvfp4_that_are_not_finite(it):
    it.put(f"{DOWN}.weight_scale_2", float("nan"))
    it.put(f"{UP}.input_scale", float("inf"))


@tamper("blocks", ("scales", f"{DOWN}.weight_scale"))
def a_block_whose_scale_is_not_finite(it):
    _, shape, _ = it.tensors[f"{DOWN}.weight_scale"]
    it.put(f"{DOWN}.weight_scale", *[float("inf")] * prod(shape), shape=shape)


@tamper("mxfp8", ("exclusion", f"{DOWN}.weight_scale"))
def no_scale_of_mxfp8(it):
    it.drop(f"{DOWN}.weight_scale")


for name in ("W8A8_SQ_PER_CHANNEL", "W8A16", "W4A16_AWQ", "NVFP4_AWQ", "FP9", None):

    def edit(it, name=name):
        it.set_algorithm(name)

    edit.__name__ = f"algorithm_{name}"
    if name is not None:
        tamper("fp8", ("algorithm", "quant_algo"))(edit)


@tamper("plain", ("algorithm", "quant_method"), ("algorithm", "quant_algo"))
def another_method(it):
    it.config["quantization_config"] = {"quant_method": "awq"}


@tamper("plain", ("algorithm", "quant_method"), ("algorithm", "quant_algo"))
def an_empty_config(it):
    it.config["quantization_config"] = {}


@tamper("plain", ("algorithm", "quantized_layers"))
def two_formats_without_layers(it):
    it.config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
    }


@tamper("formats", ("algorithm", f"{DOWN}.weight"))
def a_format_that_cannot_be_mixed(it):
    it.set_layers(it.layers() | {DOWN: "MXFP8"})


@tamper("formats", ("exclusion", f"{DOWN}.weight"))
def a_quantized_layer_that_is_not_listed(it):
    it.set_layers({name: each for name, each in it.layers().items() if name != DOWN})


@tamper("formats", ("exclusion", f"{DOWN}.weight_scale"))
def a_listed_layer_that_is_not_quantized(it):
    it.make_plain(DOWN)


@tamper("formats", ("exclusion", f"{DOWN}.weight"))
def a_listed_layer_that_is_excluded(it):
    it.inner["ignore"] = it.hf_inner["exclude_modules"] = [DOWN]


@tamper("formats", ("fusion", f"{GATE}.weight"))
def two_formats_in_what_is_fused(it):
    it.set_layers(it.layers() | {UP: "NVFP4"})


@tamper("formats", ("scales", f"{DOWN}.input_scale"))
def a_missing_scale_in_one_of_two_formats(it):
    it.drop(f"{DOWN}.input_scale")


@tamper("fp8", ("pre-quant-scale", f"{DOWN}.pre_quant_scale"))
def smoothing(it):
    it.put(f"{DOWN}.pre_quant_scale", *[1.0] * 384)


@tamper("fp8", *(("vision", f"{VISION}.{each}") for each in ("weight", "weight_scale")))
def a_quantized_vision_weight(it):
    it.cast(f"{VISION}.weight", "F8_E4M3")
    it.put(f"{VISION}.weight_scale", 1.0)


@tamper("plain", *(("vision", f"{VISION}.{each}_scale") for each in ("input", "pre_quant")))
def scales_in_the_vision_tower(it):
    it.put(f"{VISION}.input_scale", 1.0)
    it.put(f"{VISION}.pre_quant_scale", 1.0)


@tamper("one", *(("exclusion", f"{DOWN}.{each}") for each in ("weight",)))
def no_config_at_all(it):
    del it.config["quantization_config"]
    it.hf_config = None


@tamper("plain", ("kv-cache", f"{K}.k_scale"))
def a_cache_scale_without_a_config(it):
    it.put(f"{K}.k_scale", 1.0)


@tamper(
    "fp8",
    *(
        ("kv-cache", f"model.language_model.layers.{layer}.self_attn.{kind}_proj.{kind}_scale")
        for layer in range(6)
        for kind in "kv"
    ),
)
def a_quantized_cache_without_scales(it):
    it.inner["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    it.hf_inner["kv_cache_quant_algo"] = "FP8"


@tamper("cache", ("kv-cache", f"{K}.k_scale"), ("kv-cache", f"{V}.v_scale"))
def cache_scales_that_are_none(it):
    it.put(f"{K}.k_scale", float("nan"))
    it.put(f"{V}.v_scale", 1.0, 1.0)


@tamper("fp8", ("kv-cache", "kv_cache_scheme"))
def a_cache_of_another_format(it):
    it.inner["kv_cache_scheme"] = it.hf_inner["kv_cache_quant_algo"] = "NVFP4"


@tamper("plain", ("kv-cache", "kv_cache_scheme"), ("algorithm", "quant_algo"))
def a_cache_of_integers(it):
    scheme = {"type": "int", "num_bits": 8}
    it.config["quantization_config"] = {"quant_method": "modelopt", "kv_cache_scheme": scheme}


@tamper("fp8", ("configs", "quant_algo"))
def two_algorithms(it):
    it.hf_inner["quant_algo"] = "NVFP4"


@tamper("fp8", ("configs", "exclude_modules"))
def two_lists_of_exclusions(it):
    it.hf_inner["exclude_modules"].append(DOWN)


@tamper("fp8", ("configs", "kv_cache_quant_algo"))
def two_caches(it):
    it.hf_inner["kv_cache_quant_algo"] = "FP8"


@tamper("formats", ("configs", "quantized_layers"))
def two_lists_of_layers(it):
    del it.hf_inner["quantized_layers"][DOWN]


@tamper("plain", ("names", "model.layers.0.mlp.down_proj.weight"), ("names", "lm_head"))
def names_of_another_architecture(it):
    it.put("model.layers.0.mlp.down_proj.weight", dtype="BF16", shape=[2, 2])
    it.put("lm_head", dtype="BF16", shape=[2, 2])


@pytest.mark.parametrize("name", TAMPERED)
def test_what_is_broken_is_named_and_nothing_else(checkpoint, name):
    recipe, edit, expected = TAMPERED[name]
    edited = checkpoint(recipe)
    edit(edited)
    assert broken(edited.save()) == expected


def test_every_rule_is_broken_by_something():
    assert {rule for _, _, found in TAMPERED.values() for rule, _ in found} == set(RULES)


# --- what is allowed


@pytest.mark.parametrize("source", [CONFIG, HF_CONFIG])
def test_either_config_is_enough(checkpoint, source):
    found = checkpoint("mixed")
    if source == CONFIG:
        found.hf_config = None
    else:
        del found.config["quantization_config"]
    assert broken(found.save()) == set()
    found.drop(f"{DOWN}.weight_scale")
    found.make_fp8(OUT)
    assert broken(found.save()) == {
        ("exclusion", f"{DOWN}.weight_scale"),
        ("exclusion", f"{OUT}.weight"),
    }


def test_vllm_reads_the_algorithm_in_any_case(checkpoint):
    found = checkpoint("fp8")
    found.inner["quant_algo"], found.inner["quant_method"] = "fp8", "ModelOpt_fp8"
    assert broken(found.save()) == set()


def test_a_scale_may_have_one_dimension(checkpoint):
    found = checkpoint("fp8")
    found.put(f"{DOWN}.weight_scale", 0.5)
    assert broken(found.save()) == set()


def test_an_untied_output_layer_is_excluded_by_part_of_its_name_in_vllm(checkpoint):
    found = checkpoint("fp8")
    found.put("lm_head.weight", dtype="BF16", shape=[4, 4])
    assert broken(found.save()) == set()
    found.include("lm_head")
    assert broken(found.save()) == {("exclusion", "lm_head.weight_scale")}
    found.exclude("language_model.lm_hea?")
    assert broken(found.save()) == set()


def test_a_pattern_with_a_star_is_renamed_by_what_precedes_it(checkpoint):
    found = checkpoint("fp8")
    found.put("lm_head.weight", dtype="BF16", shape=[4, 4])
    found.include("lm_head")
    found.exclude("lm_head*")
    assert broken(found.save()) == set()
    found.exclude("model.language_model*")
    assert len(broken(found.save())) == 42


def test_a_listed_output_layer_is_known_by_its_old_name(checkpoint):
    found = checkpoint("formats")
    found.put("lm_head.weight", dtype="F8_E4M3", shape=[4, 4])
    found.make_fp8("lm_head")
    found.set_layers(found.layers() | {"lm_head": "FP8"})
    assert broken(found.save()) == set()
    found.set_layers({name: each for name, each in found.layers().items() if name != "lm_head"})
    assert broken(found.save()) == {("exclusion", "lm_head.weight")}


def test_a_layer_may_be_listed_by_the_name_of_what_is_fused(checkpoint):
    found = checkpoint("formats")
    layers = {name: each for name, each in found.layers().items() if name not in (GATE, UP)}
    found.set_layers(layers | {f"{LAYER}.mlp.gate_up_proj": "FP8"})
    assert broken(found.save()) == set()


def test_excluding_a_layer_by_name_excludes_those_whose_numbers_begin_like_it(checkpoint):
    """``layers.1`` is part of ``layers.10`` to vLLM; ModelOpt writes ``layers.1.*`` for that."""
    found = checkpoint("fp8")
    for module in [name for name in found.tensors if ".layers.1." in name]:
        found.tensors[module.replace(".layers.1.", ".layers.10.")] = found.tensors.pop(module)
    found.exclude("model.language_model.layers.1.*")
    assert broken(found.save()) == set()
    found.exclude("model.language_model.layers.1")
    assert {tensor.split(".")[3] for _, tensor in broken(found.save())} == {"10"}


# --- shards


def shard(found, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """Write an export in two files and an index."""
    folder = found.save()
    (folder / WEIGHTS).unlink()
    half = len(found.tensors) // 2
    parts = (list(found.tensors)[:half], list(found.tensors)[half:])
    for name, part in zip(names, parts, strict=True):
        (folder / name).write_bytes(safetensors({each: found.tensors[each] for each in part}))
    places = {each: name for name, part in zip(names, parts, strict=True) for each in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_shards_are_read_as_one(checkpoint):
    found = checkpoint("mixed")
    assert broken(shard(found)) == set()
    found.drop(f"{DOWN}.input_scale")
    assert broken(shard(found)) == {("scales", f"{DOWN}.input_scale")}


def edit_index(folder, edit):
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("../model.safetensors", "it must be the name of a .safetensors file beside it"),
        ("/etc/model.safetensors", "it must be the name of a .safetensors file beside it"),
        ("x\\..\\model.safetensors", "it must be the name of a .safetensors file beside it"),
        ("a\0.safetensors", "it must be the name of a .safetensors file beside it"),
        ("a\x1b[2J.safetensors", "it must be the name of a .safetensors file beside it"),
        ("config.json", "it must be the name of a .safetensors file beside it"),
        ("", "it must be the name of a .safetensors file beside it"),
        (7, "it must be the name of a .safetensors file beside it"),
        ("a" * 3000 + ".safetensors", "no such file"),
        ("away.safetensors", "away.safetensors: no such file"),
        ("model-00002-of-00002.safetensors", "is in model-00001-of-00002.safetensors, and the"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_index_names_files_beside_it(checkpoint, place, message):
    folder = shard(checkpoint("one"))
    first = "model.language_model.embed_tokens.weight"
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    first = next(name for name, file in places.items() if "00001" in file)
    edit_index(folder, lambda places: places.update({first: place}))
    refused(folder, message)


def test_an_index_that_lists_more_or_less_than_the_shards_is_refused(checkpoint):
    folder = shard(checkpoint("one"))
    edit_index(folder, lambda places: places.update(other="model-00001-of-00002.safetensors"))
    refused(folder, "other is said to be in model-00001-of-00002.safetensors and is not")
    edit_index(folder, lambda places: (places.pop("other"), places.popitem()))
    refused(folder, "and the index says nothing")


def test_a_stale_file_beside_the_weights_is_refused(checkpoint):
    folder = checkpoint("one").save()
    shutil.copy(folder / WEIGHTS, folder / "model-00001-of-00002.safetensors")
    refused(folder, "holds model-00001-of-00002.safetensors and no model.safetensors.index.json")


def test_weights_may_be_links_out_of_the_folder(checkpoint, tmp_path):
    """A hub cache looks like this."""
    folder = checkpoint("one").save()
    blob = (folder / WEIGHTS).rename(tmp_path / "blob")
    (folder / WEIGHTS).symlink_to(blob)
    assert broken(folder) == set()


# --- what is no export


def refused(folder, message):
    with pytest.raises(ModelError) as error:
        check_export(folder)
    shown = str(error.value)
    assert message in shown
    assert shown.startswith(str(folder))
    assert "; " in shown
    assert len(shown) < 5_000


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(checkpoint, missing):
    folder = checkpoint("fp8").save()
    (folder / missing).unlink()
    refused(folder, f"{missing}: no such file; give a folder that export_hf_checkpoint has written")


def test_a_missing_or_impossible_folder_is_named(tmp_path):
    refused(tmp_path / "away", "no such folder; give one that holds an exported checkpoint")
    refused(tmp_path / ("x" * 3000), "no such folder")


@pytest.mark.parametrize("name", [CONFIG, HF_CONFIG, WEIGHTS, INDEX])
def test_a_folder_or_pipe_in_place_of_a_file_is_refused(checkpoint, name):
    folder = checkpoint("fp8").save()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, f"{name}: no such file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name}: no such file")


@pytest.mark.parametrize("name", [HF_CONFIG, INDEX])
def test_a_link_to_nothing_is_refused(checkpoint, name):
    folder = checkpoint("fp8").save()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("away")
    refused(folder, f"{name}: no such file")


@pytest.mark.parametrize("name", [CONFIG, HF_CONFIG, INDEX])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"architectures": ["Qwen3VL', "is not JSON"),
        (b'{"a": NaN}', "is not JSON: NaN is no JSON number"),
        (b'{"a": -Infinity}', "is not JSON: -Infinity is no JSON number"),
        (b'{"a": "\\ud800"}', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "is not JSON: it nests too deep"),
        (b"[]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_json_that_is_none_is_refused(checkpoint, name, content, message):
    folder = checkpoint("fp8").save()
    (folder / name).write_bytes(content)
    refused(folder, f"{name}: {message}")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_json_larger_than_any_is_not_read(checkpoint, monkeypatch, name):
    folder = checkpoint("fp8").save()
    monkeypatch.setattr("pytest_autoquant.export.checkpoint_files._MOST_JSON", 100)
    refused(folder, "config.json: is larger than 100 bytes")
    monkeypatch.setattr("pytest_autoquant.export.checkpoint_files._MOST_JSON", 4000)
    refused(folder, "its header is ")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda it: it.config.pop("architectures"), "architecture None is none whose names"),
        (lambda it: it.config.update(architectures=[]), "architecture None is none whose names"),
        (lambda it: it.config.update(architectures=[["x"]]), "architecture ['x'] is none"),
        (
            lambda it: it.config.update(architectures=["Qwen3VLMoeForConditionalGeneration"]),
            "known: Qwen3VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration",
        ),
        (lambda it: it.config.update(quantization_config=[]), "quantization_config is []; it must"),
        (lambda it: it.inner.update(quant_algo=8), "quant_algo is 8; it must be text"),
        (lambda it: it.inner.update(quant_method={}), "quant_method is {}; it must be text"),
        (lambda it: it.inner.update(ignore="lm_head"), "ignore is 'lm_head'; it must be a list"),
        (
            lambda it: it.inner.update(ignore=[1]),
            "ignore is [1]; it must be a list of module names",
        ),
        (lambda it: it.inner.update(quantized_layers=["x"]), "it must be an object"),
        (
            lambda it: it.inner.update(quantized_layers={"x": {}}),
            "quantized_layers['x'] is {}; it must be an object with quant_algo",
        ),
        (lambda it: it.hf_config.pop("quantization"), "quantization is None; it must be an object"),
        (lambda it: it.hf_inner.update(exclude_modules={}), "exclude_modules is {}; it must be"),
        (lambda it: it.hf_inner.update(kv_cache_quant_algo=8), "kv_cache_quant_algo is 8; it must"),
    ],
)
def test_a_config_of_another_shape_is_refused(checkpoint, edit, message):
    found = checkpoint("fp8")
    edit(found)
    refused(found.save(), message)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 7])
def test_an_index_without_tensors_is_refused(checkpoint, weight_map):
    folder = checkpoint("fp8").save()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "weight_map is ")


def with_header(content, edit):
    """Edit the header of a safetensors file, its tensors left as they are."""
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:begin])
    edited = edit(header)
    start = json.dumps(header if edited is None else edited).encode()
    return struct.pack("<Q", len(start)) + start + content[begin:]


def entry_with(**changes):
    return lambda content: with_header(content, lambda it: it[f"{DOWN}.weight"].update(changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "it is 0 bytes long"),
        (lambda content: content[:7], "it is 7 bytes long"),
        (lambda content: content[:100], "its header is "),
        (lambda content: content[:-1], "its tensors end at byte "),
        (lambda content: content + b"\0", "its tensors end at byte "),
        (lambda content: b"\xff" * 8 + content[8:], "its header is 18446744073709551615 bytes"),
        (lambda content: bytes(8) + content[8:], "is not JSON"),
        (lambda content: struct.pack("<Q", 9) + content[8:], "is not JSON"),
        (lambda content: with_header(content, lambda it: []), "holds no JSON object"),
        (
            lambda content: with_header(content, lambda it: it.pop(f"{DOWN}.weight") and None),
            "what precedes it ends at",
        ),
        (
            lambda content: with_header(
                content, lambda it: it.update(x=dict(it[f"{DOWN}.weight"]))
            ),
            "what precedes it ends at",
        ),
        (lambda content: with_header(content, lambda it: it.update(x=[])), "x is []"),
        (entry_with(dtype="F3"), "is {'dtype': 'F3'"),
        (entry_with(dtype=["F32"]), "is {'dtype': ['F32']"),
        (entry_with(dtype="BF16"), "whose size is another"),
        (entry_with(shape=[128]), "whose size is another"),
        (entry_with(shape=[-128, -384]), "is {'dtype'"),
        (entry_with(shape=[128.0, 384]), "is {'dtype'"),
        (entry_with(shape=[True, 384]), "is {'dtype'"),
        (entry_with(shape=[2**70, 384]), "is {'dtype'"),
        (entry_with(shape=[*[1] * 63, 128, 384]), "is {'dtype'"),
        (entry_with(shape=None), "is {'dtype'"),
        (entry_with(data_offsets=[0]), "is {'dtype'"),
        (entry_with(data_offsets=[49152, 0]), "whose size is another"),
        (entry_with(data_offsets=[2**60, 2**60 + 128 * 384]), "what precedes it ends at"),
        (entry_with(data_offsets="0:1"), "is {'dtype'"),
    ],
)
def test_a_safetensors_file_that_lies_is_refused(checkpoint, damage, message):
    found = checkpoint("fp8")
    folder = found.save()
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, message)


def test_a_file_that_shrinks_while_it_is_read_is_refused(checkpoint):
    folder = checkpoint("fp8").save()
    export = loadability.read_export(folder)
    os.truncate(folder / WEIGHTS, 100)
    with pytest.raises(ModelError, match="changed while it was read"):
        loadability.find_violations(export)


@settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_damage_is_a_violation_or_refused(checkpoint, data):
    found = checkpoint("one")
    found.tensors = {name: each for name, each in found.tensors.items() if "layers.0.mlp" in name}
    folder = found.save()
    path = folder / data.draw(st.sampled_from((CONFIG, HF_CONFIG, WEIGHTS)))
    content = bytearray(path.read_bytes())
    reach = min(len(content), 1500)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, reach - 1))] = data.draw(
            st.integers(0, 255) | st.sampled_from(b'019-{}[]":,*.')
        )
    path.write_bytes(content)
    with suppress(ModelError):
        assert {violation.rule for violation in check_export(folder)} <= set(RULES)


@pytest.mark.parametrize("pattern", ["[", "[z-a]", "[!]", "*" * 500, "(" * 500, "a\0b", "\\", "?"])
def test_an_odd_pattern_is_a_pattern(checkpoint, pattern):
    found = checkpoint("one")
    found.exclude(pattern)
    assert broken(found.save()) <= {("exclusion", f"{DOWN}.weight")}


def test_an_empty_pattern_excludes_everything_in_vllm(checkpoint):
    found = checkpoint("one")
    found.exclude("")
    assert broken(found.save()) == {("exclusion", f"{DOWN}.weight")}


# --- what it imports and prints

GUARD = """
import sys
from pathlib import Path
from pytest_autoquant.export.vllm_rules import check_export
found = check_export(Path(sys.argv[1]))
print(len(found), sorted({"torch", "transformers", "modelopt", "safetensors"} & set(sys.modules)))
"""


def test_no_torch_is_needed(exported):
    done = subprocess.run(
        [sys.executable, "-c", GUARD, exported("fp8")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0 []\n", "")


def test_the_report_claims_what_was_checked_and_no_more(checkpoint):
    found = checkpoint("mixed")
    folder = found.save()
    assert report_of(folder) == (
        f"{folder}: FP8, 22 of 42 linears quantized\n"
        f"no violation of the {len(RULES)} static rules found; not tried in vLLM"
    )
    found.drop(f"{DOWN}.weight_scale", f"{DOWN}.input_scale")
    folder = found.save()
    assert report_of(folder) == (
        f"exclusion: {DOWN}.weight_scale is missing: the weight is F8_E4M3, and to vLLM it is "
        "quantized to FP8\n"
        f"scales: {DOWN}.input_scale is missing\n"
        f"{folder}: FP8, 22 of 42 linears quantized\n"
        "violations: 2, of the rules exclusion, scales; not tried in vLLM"
    )


def report_of(folder):
    export = loadability.read_export(folder)
    return loadability.export_report(folder, export, loadability.find_violations(export))


def test_hostile_names_are_one_line_each(checkpoint):
    found = checkpoint("plain")
    found.put("a\n\x1b[2J\u2028b", 1.0)
    found.config["quantization_config"] = {"quant_method": "x\x1b[2J\ny", "quant_algo": "\x9bz\n"}
    lines = report_of(found.save()).splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["algorithm", "algorithm", "names"]
    assert all(line.isprintable() for line in lines)


def test_the_rules_are_functions_with_a_sentence_each():
    assert all(check.__doc__ and check.__doc__.endswith(".") for check in RULES.values())
    assert Path(loadability.__file__).read_text().count("rule=") == sum(
        Path(loadability.__file__).read_text().count(f'rule="{name}"') for name in RULES
    )
