"""Exports of the embedded models by ModelOpt on the CPU, and a way to edit them."""

import json
import shutil
from pathlib import Path

import torch
from builders import load_tiny
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.export.checkpoint.files import INDEX, WEIGHTS
from pytest_autoquant.export.vllm_rules import read_export
from pytest_autoquant.export.vllm_rules.configs import CONFIG, HF_CONFIG
from pytest_autoquant.export.vllm_rules.rules import problems
from pytest_autoquant.models.layers import language_model_linears
from pytest_autoquant.models.registry import REGISTRY
from safetensors.torch import load_file, save_file

FP8 = {"num_bits": (4, 3), "axis": None}
FP8_CHANNEL = {"num_bits": (4, 3), "axis": 0}
FP8_TOKEN = {"num_bits": (4, 3), "type": "dynamic", "block_sizes": {-1: None}}
FP8_BLOCKS = {"num_bits": (4, 3), "block_sizes": {-1: 128, -2: 128}}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
MXFP8 = {"num_bits": (4, 3), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
INT8 = {"num_bits": 8, "axis": 0}

LAYER = "model.language_model.layers.0"
Q, K, V, OUT = (f"{LAYER}.self_attn.{each}_proj" for each in "qkvo")
GATE, UP, DOWN = (f"{LAYER}.mlp.{each}_proj" for each in ("gate", "up", "down"))
VISION = "model.visual.blocks.0.attn.proj"


def entries(name, weight, activation=None):
    """Return ``quant_cfg`` entries that quantize one linear."""
    halves = {"weight_quantizer": weight, "input_quantizer": activation}
    return [
        {"quantizer_name": f"{name}.{kind}", "cfg": cfg}
        for kind, cfg in halves.items()
        if cfg is not None
    ]


def kv_cache(name):
    attention, _, last = name.rpartition(".")
    kinds = "kv" if last == "q_proj" else ""
    return [{"quantizer_name": f"{attention}.{kind}_bmm_quantizer", "cfg": FP8} for kind in kinds]


def fp8_if(condition):
    return lambda name: entries(name, FP8, FP8) if condition(name) else []


#: What each recipe does to a linear.
RECIPES = {
    "fp8": fp8_if(lambda name: True),
    "mixed": fp8_if(lambda name: ".mlp." in name or "layers.1." in name),
    "plain": lambda name: [],
    "one": fp8_if(lambda name: name == DOWN),
    "q_only": fp8_if(lambda name: name.endswith("q_proj")),
    "gate_only": fp8_if(lambda name: name.endswith("gate_proj")),
    "layers": fp8_if(lambda name: name.split(".")[3] in ("1", "2")),
    "cache": lambda name: [*entries(name, FP8, FP8), *kv_cache(name)],
    "cache_only": kv_cache,
    "channel": lambda name: entries(name, FP8_CHANNEL, FP8_TOKEN),
    "formats": lambda name: entries(name, *([FP8, FP8] if ".mlp." in name else [NVFP4, NVFP4])),
    "nvfp4": lambda name: entries(name, NVFP4, NVFP4),
    "w4a16_nvfp4": lambda name: entries(name, NVFP4),
    "mxfp8": lambda name: entries(name, MXFP8, MXFP8),
    "blocks": lambda name: entries(name, FP8_BLOCKS) if ".mlp." in name else [],
    "int8": lambda name: entries(name, INT8),
}


def export_to(folder, module, rows, recipe):
    """Quantize a model by a recipe and export it; the model is spent afterwards."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    module.config.architectures = [type(module).__name__]
    quant_cfg = [
        entry for linear in language_model_linears(module) for entry in RECIPES[recipe](linear.name)
    ]

    def calibrate(model):
        for row in rows:
            model(input_ids=torch.tensor([row]))

    if quant_cfg:
        config = [{"quantizer_name": "*", "enable": False}, *quant_cfg]
        algorithm = None if recipe == "mxfp8" else "max"
        mtq.quantize(module, {"quant_cfg": config, "algorithm": algorithm}, calibrate)
    with torch.no_grad():
        export_hf_checkpoint(module, export_dir=folder)


#: Files of a model that its export needs besides what ModelOpt writes.
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


def export_embedded(folder, model, recipe):
    """Export one of the embedded models."""
    loaded = load_tiny(model, dtype=torch.bfloat16)
    rows = loaded.tokenize(load_captions(None, "small").lines[:2])
    export_to(folder, loaded.module, rows, recipe)
    for name in COMPANIONS:
        shutil.copyfile(Path(REGISTRY[model].location) / name, folder / name)
    return folder


def violations_of(folder):
    """Return (rule, tensor) of every violation, each of which is reported once."""
    found = [(r, p.tensor) for r, p in problems(read_export(folder)) if not p.is_tolerated]
    assert len(found) == len(set(found))
    return set(found)


class EditedExport:
    """An export in memory: its configs and its tensors, to be edited and saved elsewhere."""

    def __init__(self, source, folder):
        self.folder = folder
        self.companions = {name: (source / name).read_bytes() for name in COMPANIONS}
        self.config = json.loads((source / CONFIG).read_text())
        path = source / HF_CONFIG
        self.hf_config = json.loads(path.read_text()) if path.exists() else None
        self.tensors = load_file(source / WEIGHTS)

    @property
    def declared(self):
        return self.config["quantization_config"]

    @property
    def hf_declared(self):
        return self.hf_config["quantization"]

    def drop(self, *names):
        for name in names:
            del self.tensors[name]

    def put(self, name, *values, shape=None):
        """Store FP32 values."""
        self.tensors[name] = torch.tensor(values).reshape([len(values)] if shape is None else shape)

    def zeros(self, name, dtype, *shape):
        """Store zeros of another dtype, in the shape that is there if none is given."""
        self.tensors[name] = torch.zeros(shape or self.tensors[name].shape).to(dtype)

    def make_plain(self, *modules):
        for module in modules:
            self.zeros(f"{module}.weight", torch.bfloat16)
            self.drop(f"{module}.weight_scale", f"{module}.input_scale")

    def make_fp8(self, *modules):
        for module in modules:
            self.zeros(f"{module}.weight", torch.float8_e4m3fn)
            self.put(f"{module}.weight_scale", 0.5, shape=[])
            self.put(f"{module}.input_scale", 0.5, shape=[])

    def untie(self):
        """Store an output layer of its own."""
        self.config["text_config"]["tie_word_embeddings"] = False
        self.zeros("lm_head.weight", torch.bfloat16, 2048, 128)

    def exclude(self, *patterns):
        self.declared.setdefault("ignore", []).extend(patterns)
        self.hf_declared.setdefault("exclude_modules", []).extend(patterns)

    def include(self, *patterns):
        for pattern in patterns:
            self.declared["ignore"].remove(pattern)
            self.hf_declared["exclude_modules"].remove(pattern)

    def set_algorithm(self, algorithm):
        self.declared["quant_algo"] = self.hf_declared["quant_algo"] = algorithm

    def set_layers(self, **changes):
        """Change what quantized_layers declares: an algorithm per module, None for no entry."""
        layers = self.hf_declared["quantized_layers"]
        algorithms = {name: each["quant_algo"] for name, each in layers.items()} | changes
        layers = {name: {"quant_algo": each} for name, each in algorithms.items() if each}
        self.declared["quantized_layers"] = self.hf_declared["quantized_layers"] = layers

    def save(self):
        """Write everything and return the folder."""
        self._save_configs()
        save_file(self.tensors, self.folder / WEIGHTS)
        return self.folder

    def save_in_two_files(self):
        """Write the tensors as two files and an index."""
        self._save_configs()
        (self.folder / WEIGHTS).unlink(missing_ok=True)
        names = sorted(self.tensors)
        files = {}
        for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
            save_file({name: self.tensors[name] for name in part}, self.folder / file)
            files |= dict.fromkeys(part, file)
        (self.folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
        return self.folder

    def _save_configs(self):
        self.folder.mkdir(exist_ok=True)
        for name, content in self.companions.items():
            (self.folder / name).write_bytes(content)
        (self.folder / CONFIG).write_text(json.dumps(self.config))
        if self.hf_config is None:
            (self.folder / HF_CONFIG).unlink(missing_ok=True)
        else:
            (self.folder / HF_CONFIG).write_text(json.dumps(self.hf_config))
