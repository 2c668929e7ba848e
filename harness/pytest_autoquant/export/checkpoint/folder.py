"""Folders that appear complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_autoquant.errors import ExportError
from pytest_autoquant.manifests.layout import SCHEME_MANIFEST


def refuse_existing(target: Path, *, may_replace: bool) -> None:
    """Raise ExportError if ``target`` exists and must not be replaced.

    A folder that holds a scheme manifest alone is no checkpoint: a run without an export wrote it.
    """
    if not may_replace and target.exists() and not _holds_manifest_only(target):
        raise ExportError(f"{target}: exists; replace it with --aq-replace-export, or move it away")


def _holds_manifest_only(target: Path) -> bool:
    return target.is_dir() and [path.name for path in target.iterdir()] == [SCHEME_MANIFEST]


@contextmanager
def replace_folder(target: Path, *, may_replace: bool) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``target`` when the block ends without error.

    An existing ``target`` stays until then. The umask decides the modes of the folder and of the
    files in it.

    Raises:
        ExportError: ``target`` exists and must not be replaced, or the file system refuses.
    """
    refuse_existing(target, may_replace=may_replace)
    with _as_export_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            folder = staging / target.name
            folder.mkdir()
            yield folder
            _apply_umask(folder)
            refuse_existing(target, may_replace=may_replace)
            _swap(folder, target, staging / "replaced")
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _as_export_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = error.strerror or error
        raise ExportError(f"{target}: cannot be written: {problem}") from error


def _apply_umask(folder: Path) -> None:
    """Give files the mode of any new file: safetensors creates them readable by their owner only.

    ``folder`` has mode 0o777 without the umask's bits, so it tells the umask.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _swap(folder: Path, target: Path, old: Path) -> None:
    """Move ``target`` to ``old`` and ``folder`` into its place; move it back if that fails."""
    if not target.exists():
        folder.rename(target)
        return
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
