"""Whose results lie under a model's name in a report folder: another model's are never replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_autoquant.errors import AnotherModelError, RecordError
from pytest_autoquant.files import read_bytes
from pytest_autoquant.manifests.layout import find_manifests, find_schemes, model_folder
from pytest_autoquant.manifests.records.json_record import load_record
from pytest_autoquant.manifests.records.sensitivity_manifest import ModelRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelOf:
    """What both kinds of manifests say of their model; reading the rest takes ten times as long."""

    __pydantic_config__ = {"extra": "ignore"}  # noqa: RUF012
    model: ModelRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedModel:
    """A model that has results in a report folder.

    Attributes:
        manifest: path of one of them below the report root, with ``/``.
    """

    record: ModelRecord
    manifest: str

    def refuse_another(self, model: ModelRecord) -> None:
        """Check that results of ``model`` may be written beside and in place of these.

        Raises:
            AnotherModelError: this is another model of the same name.
        """
        if is_another(self.record, model):
            raise self._refusal(model.name, model.digest)

    def refuse_another_checkpoint(self, name: str, digest: str) -> None:
        """Check the same of a local checkpoint that is not loaded.

        Args:
            digest: that of its files, which is the digest of a loaded local checkpoint.

        Raises:
            AnotherModelError: this is another model of the same name.
        """
        if self.record.digest != digest:
            raise self._refusal(name, digest)

    def _refusal(self, name: str, digest: str) -> AnotherModelError:
        return AnotherModelError(
            f"model {name}: the report folder holds results of another model of this name: "
            f"{self.manifest} has digest {self.record.digest[:16]}, this model has {digest[:16]}; "
            "name this model with --aq-model-name, give another folder with --aq-report-dir, or "
            f"delete the folder {model_folder(name)} if its results are outdated"
        )


def recorded_model(root: Path, name: str) -> RecordedModel | None:
    """Return the model whose results lie under a name, None if no manifest there can be read."""
    return next(_recorded(root, name), None)


def refuse_replacing(root: Path, path: Path, model: ModelRecord) -> None:
    """Check that a manifest may be written to ``path``, a file below ``root``.

    Raises:
        AnotherModelError: the present manifest is of another model.
    """
    with suppress(RecordError):
        if path.is_file():
            _read(root, path).refuse_another(model)


def is_another(one: ModelRecord, other: ModelRecord) -> bool:
    """Return whether two records are of different models.

    The digest of a local checkpoint is that of its files. Those of hub checkpoints and of random
    weights depend on the compute dtype: between two dtypes, ids decide.
    """
    if one.digest == other.digest:
        return False
    if one.dtype == other.dtype or (_is_local(one) and _is_local(other)):
        return True
    return (one.id, one.weights) != (other.id, other.weights)


def _is_local(model: ModelRecord) -> bool:
    """Whether a checkpoint was loaded from a folder: the id is then its name, else a hub id."""
    return model.weights == "checkpoint" and "/" not in model.id


def _recorded(root: Path, name: str) -> Iterator[RecordedModel]:
    folder = root / model_folder(name)
    paths = find_manifests(folder) if folder.is_dir() else []
    for path in (*paths, *(path for path in find_schemes(root) if folder in path.parents)):
        with suppress(RecordError):
            yield _read(root, path)


def _read(root: Path, path: Path) -> RecordedModel:
    name = path.relative_to(root).as_posix()
    found = load_record(_ModelOf, read_bytes(path), source=name, name="manifest")
    return RecordedModel(record=found.model, manifest=name)
