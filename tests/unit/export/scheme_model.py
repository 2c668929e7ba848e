"""Formats for layer groups of the embedded model, and what must not change about a model."""

import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.export.apply_scheme import GroupFormat, applied
from pytest_autoquant.export.verify_checkpoint import calibrated_input_scales, verify_checkpoint
from pytest_autoquant.export.write_checkpoint import write_checkpoint
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import REGISTRY

VOCABULARY = load_vocabulary()
LAYERS = "model.language_model.layers"
QKV = tuple(f"{LAYERS}.0.self_attn.{each}_proj" for each in "qkv")
OUT = (f"{LAYERS}.0.self_attn.o_proj",)
GATE_UP = (f"{LAYERS}.1.mlp.gate_proj", f"{LAYERS}.1.mlp.up_proj")
DOWN = (f"{LAYERS}.1.mlp.down_proj",)


def load_embedded(name):
    return load_model(REGISTRY[name], device=torch.device("cpu"), dtype=torch.float32)


def batches_of(model, captions, count, batch_size=8):
    lines = captions.lines[:count]
    rows = model.tokenize(lines)
    return calibration_data(captions, rows, batch_size=batch_size, score_size=count).batches


def config_of(candidate):
    """Return the effective config of ``pair`` or ``pair-granularity``."""
    pair, _, granularity = candidate.partition("-")
    return resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity or "default"])


def formats_of(*chosen):
    """Return group formats from (candidate, group, group, ...)."""
    return tuple(
        GroupFormat(modules=modules, config=config_of(candidate))
        for candidate, *groups in chosen
        for modules in groups
    )


def export_scheme(model, source, formats, batches, folder):
    """Write and verify a checkpoint as the pipeline does."""
    with applied(model, formats, batches):
        scales = calibrated_input_scales(model, formats)
        write_checkpoint(model, source, folder)
    return verify_checkpoint(model, formats, scales, folder)


def snapshot(module):
    """Return everything that makes a model what it is: by identity, and values bit for bit."""
    parts = {
        name: (type(part), {key: id(value) for key, value in vars(part).items()})
        for name, part in module.named_modules()
    }
    containers = {
        name: [sorted(map(str, value)) for value in vars(part).values() if isinstance(value, dict)]
        for name, part in module.named_modules()
    }
    weights = {
        name: (id(p), p.requires_grad, p.grad is None, p.dtype, p.detach().numpy().tobytes())
        for name, p in module.named_parameters(remove_duplicate=False)
    }
    buffers = {name: b.numpy().tobytes() for name, b in module.named_buffers()}
    configs = dict(vars(module.config)), dict(vars(module.generation_config))
    return parts, containers, weights, buffers, configs
