"""Text on one line, names that become paths, and suggestions for unknown names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Literal

from pytest_autoquant.errors import UsageError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

#: Names that Windows keeps for devices, with any extension: Microsoft, "Naming Files, Paths, and
#: Namespaces".
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.IGNORECASE)

_LONGEST_SLUG = 120
#: Digits that any two floats between 1e-3 and 1 differ in, and that a message may take.
_MOST_DIGITS = 20

_UNSAFE_IN_SLUG = re.compile(r"[^a-z0-9._-]+")


def one_line(value: object, most: int | None = None) -> str:
    """Return ``value`` on one line, without control characters, cut to ``most`` characters."""
    flat = _CONTROL.sub(" ", str(value))
    return flat if most is None or len(flat) <= most else f"{flat[:most]}..."


def counted(count: int, noun: str) -> str:
    """Return ``1 scheme``, ``2 schemes``: a number with its noun, whose plural ends in s or es."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def digits_apart(first: float, second: float, least: int, kind: Literal["f", "g", "%"]) -> int:
    """Return the digits, ``least`` or more, at which two numbers do not look the same.

    Args:
        kind: presentation type: digits after the point for ``f`` and ``%``, significant for ``g``.
    """
    if first == second:
        return least

    def shown(value: float, digits: int) -> float:
        return float(f"{value:.{digits}{kind}}".removesuffix("%"))

    found = (n for n in range(least, _MOST_DIGITS) if shown(first, n) != shown(second, n))
    return next(found, _MOST_DIGITS)


def told_apart(first: str, second: str, least: int) -> tuple[str, str]:
    """Cut two texts to ``least`` characters, or to as many more as it takes to tell them apart."""
    most = least
    while first != second and first[:most] == second[:most]:
        most += 1
    return first[:most], second[:most]


def well_formed(text: str) -> str:
    """Return ``text`` with half surrogate pairs, as undecodable file names have, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_device_name(text: str) -> bool:
    """Return whether Windows takes a file or folder of this name for a device, such as ``con``."""
    return _DEVICE_NAME.fullmatch(text.strip(" .")) is not None


def is_slug(text: str) -> bool:
    """Return whether ``text`` is one path component as it is, on every system."""
    return slug(text) == text


def slug(text: str) -> str:
    """Return ``text`` as one path component on every system.

    It is lower case with ``/`` as ``--``, never ``.`` or ``..``, has no space or dot at its end,
    and is not the name of a device.
    """
    lowered = text.strip().lower().replace("/", "--")
    cleaned = _UNSAFE_IN_SLUG.sub("-", lowered).strip("-.")
    if is_device_name(cleaned):
        cleaned = f"_{cleaned}"
    cut = cleaned[:_LONGEST_SLUG].rstrip("-.")
    return cut or f"unnamed-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def now_utc() -> str:
    """Return the present time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def shown_time(moment: str | None) -> str:
    """Return an ISO 8601 time in UTC for a reader, ``unknown`` for None."""
    return "unknown" if moment is None else moment.replace("T", " ").replace("+00:00", " UTC")


def shown_duration(seconds: float) -> str:
    """Return a duration: ``0.8 s``, ``42 s``, ``3 min 20 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def unknown(kind: str, name: str, known: Iterable[str], hint: str) -> UsageError:
    """Return the error for an unknown name, with the known ones and the closest of them.

    Args:
        kind: what the name stands for, e.g. ``overlay``.
        hint: what the user can do about it.
    """
    names = list(known)
    close = get_close_matches(name, names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return UsageError(f"{kind} {name!r} is unknown{guess}; known: {', '.join(names)}; {hint}")


def in_words(error: BaseException, most: int = 300) -> str:
    """Return a library's exception on one line: its type, and its message cut to ``most``."""
    message = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {message[:most]}"
