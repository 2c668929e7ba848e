"""Which model a name stands for; nothing is loaded here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from pytest_autoquant.errors import ModelError
from pytest_autoquant.text import slug, unknown

_DATA = Path(str(files("pytest_autoquant") / "data"))
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHT_FILES = "*.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: names folders and cases.
        location: a folder, or a hub id.
        architecture: a config file for random weights of the full architecture when the location
            cannot be reached; None to read it from the location.
    """

    name: str
    location: str
    architecture: Path | None = None

    @property
    def public_id(self) -> str:
        """The hub id or folder name, without the path that led to it."""
        return Path(self.location).name if Path(self.location).is_dir() else self.location


EMBEDDED_TOKENIZER = _DATA / "tiny-qwen3-vl"
"""Stands in for the tokenizer of a model whose weights are random and whose files are away."""

DEFAULT_MODEL = "tiny-qwen3-vl"

_SOURCES = (
    ModelSource(name=DEFAULT_MODEL, location=str(_DATA / DEFAULT_MODEL)),
    ModelSource(
        name="qwen3-vl-4b",
        location="Qwen/Qwen3-VL-4B-Instruct",
        architecture=_DATA / "configs" / "qwen3-vl-4b.json",
    ),
    ModelSource(name="tiny-qwen2.5-vl", location=str(_DATA / "tiny-qwen2.5-vl")),
    ModelSource(
        name="qwen2.5-vl-3b",
        location="Qwen/Qwen2.5-VL-3B-Instruct",
        architecture=_DATA / "configs" / "qwen2.5-vl-3b.json",
    ),
)

REGISTRY: Mapping[str, ModelSource] = MappingProxyType({s.name: s for s in _SOURCES})


def find_model(name: str, *, random_weights: bool) -> ModelSource:
    """Return the source that ``name`` stands for: a registry entry, a folder or a hub id.

    With ``random_weights`` the source's name ends in ``-random``, so that a rehearsal is never
    taken for a measurement of the checkpoint.

    Raises:
        ModelError: a folder without a config or without safetensors weights.
        UsageError: neither a registry name, nor a folder, nor an ``org/name`` hub id.
    """
    source = _find(name, random_weights=random_weights)
    return replace(source, name=f"{source.name}-random") if random_weights else source


def _find(name: str, *, random_weights: bool) -> ModelSource:
    if name in REGISTRY:
        return REGISTRY[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, random_weights=random_weights)
        name = slug(folder.resolve().name)
        name = f"{name}-local" if name in REGISTRY else name
        return ModelSource(name=name, location=str(folder.resolve()))
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"model folder {name}: does not exist")
    if _HUB_ID.fullmatch(name) and not folder.is_absolute():
        return ModelSource(name=slug(name), location=name)
    raise unknown("model", name, REGISTRY, "or give a checkpoint folder or an org/name hub id")


def _check_folder(folder: Path, *, random_weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder}: has no config.json; give a transformers checkpoint"
        )
    if not random_weights and not any(folder.glob(_WEIGHT_FILES)):
        raise ModelError(
            f"model folder {folder}: has no {_WEIGHT_FILES} weights; add them, or rehearse with "
            "--aq-weights random"
        )
