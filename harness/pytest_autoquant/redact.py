"""Command lines and paths without the names of hosts and folders."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

_FOLDERS = re.compile(
    r"(?<![\w.~/-])(?<!http:)(?<!https:)(?:~[\w.-]*)?/+(?:[^\s/'\"`:;,=]+/+)*(?=[^\s/'\"`:;,=])"
)
"""The folders before the last part of an absolute path, or of one below a home."""


def command_line(arguments: Iterable[str], *, with_paths: bool) -> str:
    """Return pytest's command line; unless ``with_paths`` it names neither folders nor hosts."""
    given = list(arguments)
    return shlex.join(["pytest", *(given if with_paths else _public(given))])


def _public(arguments: Sequence[str]) -> Iterator[str]:
    """Cut absolute paths to their last part, and xdist's worker specifications to their kind."""
    before = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if before == "--tx":
            yield _kind(argument)
        elif option == "--tx":
            yield f"--tx={_kind(value)}" if equals else option
        elif PurePath(argument).is_absolute():
            yield PurePath(argument).name
        elif option.startswith("-") and PurePath(value).is_absolute():
            yield f"{option}={PurePath(value).name}"
        else:
            letter = argument[:2] if re.match(r"-\w[~/]", argument) else ""
            yield letter + without_paths(argument[len(letter) :])
        before = argument


def _kind(specification: str) -> str:
    """Return what kind of xdist worker, and how many, such as ``2*popen``."""
    return specification.partition("//")[0].partition("=")[0]


def without_paths(text: str) -> str:
    """Return ``text`` with every absolute path in it cut to its last part."""
    return _FOLDERS.sub("", text)
