"""Files that are read with a clear error and written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from pytest_autoquant.errors import RecordError, WriteError

#: A JSON escape that may stand for one half of a surrogate pair, which UTF-8 cannot encode.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_bytes(path: Path, name: str | None = None) -> bytes:
    """Return a file's content.

    Args:
        name: what the error calls the file, its path by default.

    Raises:
        RecordError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path if name is None else name, error) from error


def unreadable(name: Path | str, error: OSError) -> RecordError:
    """Return the error for a file that cannot be read."""
    return RecordError(f"{name}: cannot be read: {error.strerror or error}")


def unwritable(path: Path, error: OSError) -> WriteError:
    """Return the error for a file or folder that cannot be written."""
    return WriteError(f"{path}: cannot be written: {error.strerror or error}")


def write_atomic(path: Path, content: str | bytes, *, is_record: bool = True) -> None:
    """Write ``content`` to ``path`` through a temporary file in the same folder.

    A reader sees the old file or the new one, never a part of one, also after a crash. File and
    folder modes follow the umask.

    Args:
        is_record: whether the file must also survive that the machine stops; it takes milliseconds
            to have the disk confirm that, which reports do not need: records make them again.

    Raises:
        WriteError: the folder cannot be created or written; no temporary file is left behind.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                if is_record:
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def load_json(text: str | bytes) -> Any:
    """Parse JSON as its standard defines it.

    Raises:
        ValueError: the text is not JSON, holds ``NaN`` or an infinity, nests too deep to be
            parsed, or holds half a surrogate pair, which could not be written again.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
        if _may_hold_surrogates(text):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    return document


def _may_hold_surrogates(text: str | bytes) -> bool:
    try:
        plain = text if isinstance(text, str) else text.decode()
        plain.encode()
    except UnicodeError:
        return True
    return _SURROGATE_ESCAPE.search(plain) is not None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def check_writable(
    folder: Path, *, name: str = "report folder", option: str = "--aq-report-dir"
) -> None:
    """Create ``folder`` if it is missing, and check that a file can be written in it.

    Args:
        name: what the error calls the folder.
        option: the option that chooses the folder.

    Raises:
        WriteError: the folder cannot be written; known before the first case rather than after
            the last.
    """
    probe = folder / f".writable.{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"{name} {folder}: cannot be written ({error.strerror or error}); "
            f"choose another one with {option}"
        ) from error
