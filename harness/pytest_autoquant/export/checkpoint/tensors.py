"""The tensors of a checkpoint, by their names in the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pytest_autoquant.export.checkpoint.files import INDEX
from pytest_autoquant.files import load_json

#: Current and older prefix of a tensor's name. transformers 5 renamed modules of Qwen2.5-VL and
#: still saves checkpoints under the older names.
_OLD_PREFIXES = (("model.language_model.", "model."), ("model.visual.", "visual."))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: those that its index names, else all."""
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return sorted({folder / name for name in load_json(index.read_bytes())["weight_map"].values()})


class CheckpointTensors:
    """The tensors of a checkpoint's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        paths = weight_files(folder)
        files: list[Any] = [safe_open(path, "pt") for path in paths]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self.num_bytes = sum(path.stat().st_size for path in paths)

    def get(self, name: str) -> torch.Tensor | None:
        """Return a tensor by its name in the model, None if it is not stored."""
        for stored in _stored_names(name):
            if stored in self._file_of:
                tensor: torch.Tensor = self._file_of[stored].get_tensor(stored)
                return tensor
        return None

    def names_below(self, module: str) -> tuple[str, ...]:
        """Return the names of the tensors in a module and in those below it."""
        return tuple(name for name in self._file_of if name.startswith(f"{module}."))

    @cached_property
    def common_dtype(self) -> torch.dtype:
        """The dtype of most floating-point tensors, read from the files' headers."""
        names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
        names["BF16"] = torch.bfloat16
        counts = Counter(file.get_slice(name).get_dtype() for name, file in self._file_of.items())
        return max(names.items(), key=lambda each: counts[each[0]])[1]


def _stored_names(name: str) -> Iterator[str]:
    yield name
    for new, old in _OLD_PREFIXES:
        if name.startswith(new):
            yield old + name.removeprefix(new)
