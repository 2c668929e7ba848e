"""Model names: registry entries, local folders and hub ids. Nothing is loaded here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from pytest_autoquant.errors import ModelError, UsageError
from pytest_autoquant.text import is_device_name, slug, unknown

_DATA = Path(str(files("pytest_autoquant.models") / "data"))
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHT_FILES = "*.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: used in folder names and case ids.
        location: a folder, or a hub id.
        architecture: config file for random weights of the full architecture, so that the hub is
            not needed; None to read the config from the location.
        revision: commit, tag or branch of the hub's repository; None for its main branch.
    """

    name: str
    location: str
    architecture: Path | None = None
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the location is a folder."""
        return Path(self.location).is_dir()

    @property
    def public_id(self) -> str:
        """The hub id or the folder's name, without the folder's path."""
        return Path(self.location).name if self.is_local else self.location

    @property
    def is_embedded(self) -> bool:
        """Whether it is one of the small models that the package ships."""
        return Path(self.location).parent == _DATA

    def reads_hub(self, *, random_weights: bool) -> bool:
        """Whether loading the model reads a file of a hub repository.

        Random weights of a hub id that is not registered have the hub's config.
        """
        return not self.is_local and not (random_weights and self.architecture is not None)


DEFAULT_MODEL = "tiny-qwen3-vl"

#: Folder of the tokenizer that is used with random weights of a model that is not a local folder.
EMBEDDED_TOKENIZER = _DATA / DEFAULT_MODEL


def _embedded(name: str) -> ModelSource:
    return ModelSource(name=name, location=str(_DATA / name))


def _published(name: str, hub_id: str) -> ModelSource:
    return ModelSource(name=name, location=hub_id, architecture=_DATA / "configs" / f"{name}.json")


_SOURCES = (
    _embedded(DEFAULT_MODEL),
    _published("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct"),
    _published("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct"),
    _published("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct"),
    _published("qwen3-vl-32b", "Qwen/Qwen3-VL-32B-Instruct"),
    _published("qwen3-vl-30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
    _published("qwen3-vl-235b-a22b", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
    _embedded("tiny-qwen2.5-vl"),
    _published("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct"),
    _published("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
)

REGISTRY: Mapping[str, ModelSource] = MappingProxyType({s.name: s for s in _SOURCES})


def find_model(
    name: str, *, random_weights: bool, called: str | None = None, revision: str | None = None
) -> ModelSource:
    """Return the source for a registry name, a folder or a hub id; a folder wins over a hub id.

    With ``random_weights`` the name of the source ends in ``-random``, so that its results cannot
    be mistaken for the checkpoint's.

    Args:
        called: the source's name in folders and case ids; None to take it from ``name``.
        revision: what is read from the hub's repository; left out where nothing is.

    Raises:
        ModelError: the folder does not exist, or has no config or no safetensors weights.
        UsageError: neither a registry name, nor a folder, nor an ``org/name`` hub id; or a name
            that is another registry entry's or, on Windows, a device's.
    """
    source = _find(name, random_weights=random_weights)
    if called is not None:
        source = _called(source, called)
    elif is_device_name(source.public_id):
        raise UsageError(
            f"model folder {source.location}: Windows keeps the name {source.public_id} for a "
            "device, so no report folder can have it; name the model with --aq-model-name"
        )
    if revision is not None and source.reads_hub(random_weights=random_weights):
        source = replace(source, revision=revision)
    return replace(source, name=f"{source.name}-random") if random_weights else source


def _find(name: str, *, random_weights: bool) -> ModelSource:
    if name in REGISTRY:
        return REGISTRY[name]
    if not name.strip():
        raise UsageError(
            f"the model's name must not be empty; known: {', '.join(REGISTRY)}; or use a "
            "checkpoint folder or an org/name hub id"
        )
    folder = _expanded(name)
    if folder.is_dir():
        return _local(folder, random_weights=random_weights)
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"model folder {name}: does not exist")
    if _HUB_ID.fullmatch(name):
        return ModelSource(name=slug(name), location=name)
    raise unknown("model", name, REGISTRY, "or use a checkpoint folder or an org/name hub id")


def _called(source: ModelSource, name: str) -> ModelSource:
    if name in REGISTRY and REGISTRY[name].location != source.location:
        raise UsageError(
            f"--aq-model-name {name}: is the name of an embedded or registered model, "
            f"{REGISTRY[name].public_id}; give another name"
        )
    return replace(source, name=name)


def _expanded(name: str) -> Path:
    """Return a path with the home folder of ``~`` or ``~user`` in it."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # the user does not exist
        raise ModelError(f"model folder {name}: does not exist: no such user") from None


def _local(folder: Path, *, random_weights: bool) -> ModelSource:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder}: has no config.json; use a folder saved by transformers"
        )
    if not random_weights and not any(folder.glob(_WEIGHT_FILES)):
        raise ModelError(
            f"model folder {folder}: has no {_WEIGHT_FILES} weights; add them, or use "
            "--aq-weights random"
        )
    resolved = folder.resolve()
    name = slug(resolved.name)
    return ModelSource(
        name=f"{name}-local" if name in REGISTRY else name,
        location=str(resolved),
    )
