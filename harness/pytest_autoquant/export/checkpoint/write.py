"""Write a model that is quantized in memory as a Hugging Face checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.source_files import (
    keep_companions,
    keep_config,
    keep_tensors,
)
from pytest_autoquant.export.checkpoint.tensors import CheckpointTensors
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.text import in_words

#: Free disk space that an export needs, as a multiple of the model's size in memory.
_SPACE_FACTOR = 1.1


def size_in_bytes(model: LoadedModel) -> int:
    """Return the size of the model's parameters in memory."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def write_checkpoint(model: LoadedModel, source: Path | None, folder: Path) -> None:
    """Export the model with ModelOpt; keep of its source all that is not quantized.

    Call it inside ``applied``: ModelOpt's export changes the model.

    Args:
        source: folder of the checkpoint that was loaded, None for random weights.
        folder: an existing, empty folder.

    Raises:
        ExportError: not enough free space, or ModelOpt cannot export the model.
    """
    _check_space(model, folder)
    with _architecture_named(model.module), quiet():
        _export(model.module, folder)
    _keep_source(model, source, folder)


def _check_space(model: LoadedModel, folder: Path) -> None:
    needed = size_in_bytes(model) * _SPACE_FACTOR
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{folder}: the export of {model.record.name} needs {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; free some, or give another --aq-report-dir"
        )


def _export(module: Any, folder: Path) -> None:
    from modelopt.torch.export import export_hf_checkpoint

    try:
        export_hf_checkpoint(module, export_dir=folder)
    except Exception as error:
        raise ExportError(f"ModelOpt cannot export this scheme: {in_words(error)}") from error


@contextmanager
def _architecture_named(module: Any) -> Iterator[None]:
    """Name the architecture in the config for a while.

    ModelOpt 0.47 reads it there (``modelopt/torch/export/model_utils.py``), and a model that
    was built from a config has none.
    """
    before = module.config.architectures
    module.config.architectures = [type(module).__name__]
    try:
        yield
    finally:
        module.config.architectures = before


def _keep_source(model: LoadedModel, source: Path | None, folder: Path) -> None:
    """Keep what the source has; random weights have no source but a tokenizer and a config."""
    if source is None:
        model.tokenizer.save_pretrained(folder)
        if getattr(model.module, "generation_config", None) is not None:
            model.module.generation_config.save_pretrained(folder)
        return
    keep_companions(source, folder)
    keep_config(source, folder)
    keep_tensors(CheckpointTensors(source), folder)
