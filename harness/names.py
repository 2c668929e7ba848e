"""Names that become paths, test ids and table rows."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import PurePath

from harness.errors import VocabularyError

_SAFE_NAME = re.compile(r"[a-z0-9_]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_FOLDERS = re.compile(
    r"(?<![\w.~/-])(?<!http:)(?<!https:)(?:~[\w.-]*)?/+(?:[^\s/'\"`:;,=]+/+)*(?=[^\s/'\"`:;,=])"
)
"""The folders before the last part of an absolute path, or of one below a home."""

_UNSAFE_IN_SLUG = re.compile(r"[^a-z0-9._-]+")


def check_name(name: object, *, where: str) -> str:
    """Return ``name`` if it is safe in a path and a test id.

    Raises:
        VocabularyError: anything but one or more of ``a-z``, ``0-9`` and ``_``.
    """
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name):
        raise VocabularyError(
            f"{where}: name {name!r} is not safe in a path; use only a-z, 0-9 and _"
        )
    return name


def one_line(value: object, most: int | None = None) -> str:
    """Return ``value`` on one line, without control characters, cut to ``most`` characters."""
    flat = _CONTROL.sub(" ", str(value))
    return flat if most is None or len(flat) <= most else f"{flat[:most]}..."


def well_formed(text: str) -> str:
    """Return ``text`` with halves of characters, as odd file names have them, made visible."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def slug(text: str) -> str:
    """Return ``text`` as one path component: lower case, ``/`` as ``--``, never ``.`` or ``..``."""
    lowered = text.strip().lower().replace("/", "--")
    cleaned = _UNSAFE_IN_SLUG.sub("-", lowered).strip("-.")
    return cleaned[:120] or f"unnamed-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def unknown(kind: str, given: str, known: Iterable[str], hint: str) -> VocabularyError:
    """Build the error for a name that is not in the vocabulary."""
    names = list(known)
    close = get_close_matches(given, names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return VocabularyError(f"{kind} {given!r} is unknown{guess}; known: {', '.join(names)}; {hint}")
