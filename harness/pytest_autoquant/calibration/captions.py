"""Calibration captions: the built-in set, or the user's text file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import CaptionError

#: Name of the built-in calibration captions in manifests.
BUILTIN_NAME = "autoquant-captions"

#: ``CaptionSet.size`` of held-out captions.
HELD_OUT = "held-out"

#: Name of the built-in held-out captions in manifests.
HELD_OUT_NAME = "autoquant-held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSet:
    """A file's captions, of which a size uses the first that are long enough.

    Attributes:
        name: file name, or the built-in set's name.
        size: a key of ``SIZES``, or ``HELD_OUT``.
        requested: number of captions that the size asks for; there may be fewer ``lines``.
        lines: every caption of the file, in its order, stripped, without blank lines.
    """

    name: str
    size: str
    requested: int
    lines: tuple[str, ...]


def load_captions(path: Path | None, size: str) -> CaptionSet:
    """Read the captions of a file, or the built-in set, for a size.

    Args:
        path: plain text, one caption per line, UTF-8; blank lines are ignored. None for the
            built-in set.
        size: a key of ``SIZES``.

    Raises:
        CaptionError: a missing, unreadable, non-UTF-8 or empty file. Fewer captions than the size
            asks for are not an error; see ``CalibrationData.shortfall``.
    """
    lines = _read_lines(path, "captions.txt")
    name = BUILTIN_NAME if path is None else path.name
    return CaptionSet(name=name, size=size, requested=SIZES[size], lines=lines)


def load_held_out(path: Path | None) -> CaptionSet:
    """Read the captions that damage is measured on: all of a file, or of the built-in set.

    The built-in held-out captions share no line with the built-in calibration captions.

    Raises:
        CaptionError: see ``load_captions``.
    """
    name = HELD_OUT_NAME if path is None else path.name
    lines = _read_lines(path, "heldout.txt")
    return CaptionSet(name=name, size=HELD_OUT, requested=len(lines), lines=lines)


def _read_lines(path: Path | None, builtin: str) -> tuple[str, ...]:
    text = _builtin_text(builtin) if path is None else _file_text(path)
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise CaptionError(f"captions file {path}: is empty; give one caption per line")
    return lines


def _builtin_text(name: str) -> str:
    return (files("pytest_autoquant.calibration") / "data" / name).read_text(encoding="utf-8")


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CaptionError(f"captions file {path}: does not exist") from None
    except UnicodeDecodeError as error:
        raise CaptionError(
            f"captions file {path}: is not UTF-8 (byte {error.start}); convert it, for example "
            "with iconv -t utf-8"
        ) from None
    except OSError as error:
        raise CaptionError(f"captions file {path}: cannot be read: {error.strerror}") from None
