"""Write a model that is quantized in memory as a Hugging Face checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytest_autoquant.errors import ExportError
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.text import in_words

#: Processor files are copied from the source unchanged: building a processor would need more than
#: a checkpoint, such as a video decoder.
_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)

#: Free disk space that an export needs, as a multiple of the model's size in memory.
_SPACE_FACTOR = 1.1


def size_in_bytes(model: LoadedModel) -> int:
    """Return the size of the model's parameters in memory."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def write_checkpoint(model: LoadedModel, source: ModelSource, folder: Path) -> None:
    """Export the model with ModelOpt, with the tokenizer and processor of its source.

    Call it inside ``applied``: ModelOpt's export changes the model.

    Args:
        folder: an existing, empty folder.

    Raises:
        ExportError: not enough free space, or ModelOpt cannot export the model.
    """
    _check_space(model, folder)
    with _architecture_named(model.module), quiet():
        _export(model.module, folder)
    _save_companions(model, source, folder)


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


def _save_companions(model: LoadedModel, source: ModelSource, folder: Path) -> None:
    """Save what a runtime needs beside the weights, as far as the source has it."""
    model.tokenizer.save_pretrained(folder)
    if getattr(model.module, "generation_config", None) is not None:
        model.module.generation_config.save_pretrained(folder)
    if model.record.weights == "random":
        return  # the processor on the hub belongs to other weights
    if Path(source.location).is_dir():
        _copy_processor(Path(source.location), folder)
    else:
        _save_processor(source, folder)


def _copy_processor(source: Path, folder: Path) -> None:
    for name in _PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _save_processor(source: ModelSource, folder: Path) -> None:
    from transformers import AutoProcessor

    with suppress(OSError, ValueError, ImportError, AttributeError):  # not every model has one
        AutoProcessor.from_pretrained(source.location).save_pretrained(folder)
