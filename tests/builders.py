"""Builders that tests of several rooms share. Heavy imports wait until a builder needs them."""

import hashlib
from dataclasses import replace
from pathlib import Path

from pytest_autoquant.options.run_plan import RunPlan
from pytest_autoquant.options.settings import RawValue, read_settings


def changed(record, part, **values):
    """Return a record with some fields of one of its parts replaced."""
    return replace(record, **{part: replace(getattr(record, part), **values)})


def settings_of(*, in_ini=False, **values):
    """Read settings from raw values by option name, as on the command line or in the ini file."""
    return read_settings(
        lambda option: RawValue(
            value=values.get(option.name),
            origin=f"ini option {option.ini}" if in_ini else option.flag,
            is_on_command_line=not in_ini,
        )
    )


def run_plan(rootdir=Path(), **values):
    """Plan a run from raw option values on the command line."""
    return RunPlan.of(settings_of(**values), rootdir)


def ignore_progress(phase, done, total):
    """A ``Progress`` that shows nothing."""


def load_tiny(name="tiny-qwen3-vl", **options):
    """Load an embedded model in fp32 on the CPU."""
    import torch
    from pytest_autoquant.models.loading import load_model
    from pytest_autoquant.models.registry import REGISTRY

    options = {"device": torch.device("cpu"), "dtype": torch.float32} | options
    return load_model(REGISTRY[name], **options)


def calibration_of(model, size="small", *, batch_size=32, score_size=128):
    """Batch the built-in captions of a size for a model."""
    from pytest_autoquant.calibration.batches import calibration_data
    from pytest_autoquant.calibration.captions import load_captions

    captions = load_captions(None, size)
    ids = model.tokenize(captions.lines)
    return calibration_data(captions, ids, batch_size=batch_size, score_size=score_size)


def model_state(module):
    """Describe everything that a measurement may change in a model, for comparison by ``==``."""
    import torch

    ids = torch.arange(5, 25, device=next(module.parameters()).device)[None]
    children = list(module.modules())
    with torch.no_grad():
        logits = module(input_ids=ids, use_cache=False).logits
    return {
        "logits": _digest(logits),
        "weights": [_digest(p) for p in module.parameters()],
        "buffers": {name: _digest(buffer) for name, buffer in module.named_buffers()},
        "identity": [id(p) for p in module.parameters()],
        "grads": [(p.requires_grad, p.grad) for p in module.parameters()],
        "classes": [type(child) for child in children],
        "attributes": [list(child.__dict__) for child in children],
        "values": [
            {k: v for k, v in vars(child).items() if isinstance(v, bool | int | float | str)}
            for child in children
        ],
        "hooks": [
            (len(child._forward_hooks), len(child._forward_pre_hooks), len(child._backward_hooks))
            for child in children
        ],
        "config": module.config.to_json_string(),
        "is_tied": module.lm_head.weight is module.get_input_embeddings().weight,
    }


def _digest(tensor):
    import torch

    raw = tensor.detach().contiguous().cpu().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
