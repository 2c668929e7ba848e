"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from pytest_autoquant.errors import RecordError

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may stand for half a character, which cannot be written again."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` through a temporary file beside it.

    A reader sees the old file or the new one, never half of one, also after a crash.

    Raises:
        RecordError: the folder cannot be created or written; nothing is left behind.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror or error}") from error


def load_json(text: str | bytes) -> Any:
    """Read JSON whose numbers are JSON's own.

    Raises:
        ValueError: it is none, holds ``NaN`` or an infinity, nests too deep to be read, or text
            that cannot be written again.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
        if _may_hold_half_characters(text):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    return document


def _may_hold_half_characters(text: str | bytes) -> bool:
    try:
        plain = text if isinstance(text, str) else text.decode()
        plain.encode()
    except UnicodeError:
        return True
    return _HALF.search(plain) is not None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def check_writable(folder: Path) -> None:
    """Create ``folder`` and prove that a file can be written in it.

    Raises:
        RecordError: it cannot; known before the first case runs rather than after the last.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RecordError(
            f"report folder {folder}: cannot be written ({error.strerror or error}); "
            "give another one with --aq-report-dir"
        ) from error
