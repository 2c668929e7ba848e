"""Redaction of command lines and messages before they are published in reports.

Redacted are the folders of absolute paths and of paths below a home, of which the last part stays,
and everything in an xdist worker specification but its kind and count. This is best effort, by
pattern: relative paths, host names outside ``--tx``, user names and anything else in an option's
value or a library's message stay. Do not rely on it to keep a secret.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

#: The folders before the last part of an absolute path, or of a path below a home; not those of
#: a URL.
_FOLDERS = re.compile(
    r"(?<![\w.~/-])(?<!http:)(?<!https:)(?:~[\w.-]*)?/+(?:[^\s/'\"`:;,=]+/+)*(?=[^\s/'\"`:;,=])"
)

#: A short option with its value attached, such as ``-c/etc/x``.
_ATTACHED_PATH = re.compile(r"-\w[~/]")


def command_line(arguments: Iterable[str], *, with_paths: bool) -> str:
    """Return pytest's command line, redacted unless ``with_paths``."""
    words = list(arguments)
    return shlex.join(["pytest", *(words if with_paths else _redacted(words))])


def without_paths(text: str) -> str:
    """Return ``text`` with every absolute path in it cut to its last part."""
    return _FOLDERS.sub("", text)


def _redacted(arguments: Sequence[str]) -> Iterator[str]:
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        if before == "--tx":
            yield _worker_kind(argument)
        elif option == "--tx" and equals:
            yield f"--tx={_worker_kind(value)}"
        elif PurePath(argument).is_absolute():
            yield PurePath(argument).name
        elif option.startswith("-") and PurePath(value).is_absolute():
            yield f"{option}={PurePath(value).name}"
        else:
            letter = argument[:2] if _ATTACHED_PATH.match(argument) else ""
            yield letter + without_paths(argument[len(letter) :])


def _worker_kind(specification: str) -> str:
    """Return the kind and count of an xdist worker specification, such as ``2*popen``."""
    return specification.partition("//")[0].partition("=")[0]
