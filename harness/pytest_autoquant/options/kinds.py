"""Kinds of option values: how each is written, converted and checked."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_autoquant.calibration.batches import MIN_TOKENS
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.text import is_slug

IniType = Literal["string", "bool", "int", "float", "args"]

MAX_BITS = 16.0
MAX_WHOLE = 2**63 - 1
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What an option's value may be.

    Attributes:
        ini_type: type of the ini value, as ``pytest.Parser.addini`` names it.
        metavar: placeholder in ``--help``.
        allowed: what an error message says is allowed.
        convert: returns the checked value; raises ValueError for anything else.
    """

    ini_type: IniType
    metavar: str
    allowed: str
    convert: Callable[[Any], Any]

    def parse(self, raw: object, origin: str) -> Any:
        """Return the checked value.

        Raises:
            UsageError: a value that is not allowed; the message starts with ``origin``.
        """
        try:
            return self.convert(raw)
        except ValueError:
            raise UsageError(f"{origin}: {raw!r} is not allowed; give {self.allowed}") from None


def choice(*allowed: str) -> Kind:
    """Return the kind of one of a few words."""

    def convert(raw: object) -> str:
        return _member(str(raw), allowed)

    return Kind(
        ini_type="string", metavar="|".join(allowed), allowed=", ".join(allowed), convert=convert
    )


def names(*allowed: str) -> Kind:
    """Return the kind of a list of names, separated by commas or spaces; none allowed: any."""

    def convert(raw: str | Sequence[str]) -> tuple[str, ...]:
        text = raw if isinstance(raw, str) else ",".join(raw)
        found = tuple(text.replace(",", " ").split())
        if not found:
            raise ValueError(raw)
        return tuple(_member(name, allowed) for name in found) if allowed else found

    words = f"names out of {', '.join(allowed)}" if allowed else "names"
    return Kind(
        ini_type="args",
        metavar="NAME,...",
        allowed=f"{words}, separated by commas (a list in TOML)",
        convert=convert,
    )


def _member(word: str, allowed: Sequence[str]) -> str:
    if word not in allowed:
        raise ValueError(word)
    return word


def _flag(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    return _member(str(raw).lower(), TRUE + FALSE) in TRUE


def _whole(raw: object, least: int) -> int:
    number = int(str(raw))
    if not least <= number <= MAX_WHOLE:
        raise ValueError(raw)
    return number


def _amount(raw: object, most: float) -> float:
    number = float(str(raw))
    if not 0 <= number <= most:
        raise ValueError(raw)
    return number


def _above_zero(raw: object, most: float) -> float:
    number = _amount(raw, most)
    if number == 0:
        raise ValueError(raw)
    return number


def _path(raw: object) -> Path:
    if not re.search(r"\S", str(raw)):
        raise ValueError(raw)
    try:
        return Path(str(raw)).expanduser()
    except RuntimeError:  # the home folder of a user that does not exist
        raise ValueError(raw) from None


def _name(raw: object) -> str:
    if not is_slug(str(raw)):
        raise ValueError(raw)
    return str(raw)


def _revision(raw: object) -> str:
    # Revisions are file names in the hub's cache.
    if not re.fullmatch(r"\w[\w./+-]*", str(raw)) or ".." in str(raw):
        raise ValueError(raw)
    return str(raw)


TEXT = Kind(ini_type="string", metavar="TEXT", allowed="text", convert=str)
NAME = Kind(
    ini_type="string",
    metavar="NAME",
    allowed="at most 120 of a-z, 0-9, '.', '_' and '-', with none of '.-' at either end, and no "
    "device's name such as con",
    convert=_name,
)
REVISION = Kind(
    ini_type="string",
    metavar="REVISION",
    allowed="a commit, tag or branch of the model's hub repository",
    convert=_revision,
)
PATH = Kind(ini_type="string", metavar="PATH", allowed="a path", convert=_path)
FLAG = Kind(ini_type="bool", metavar="", allowed="true or false", convert=_flag)
COUNT = Kind(
    ini_type="int",
    metavar="N",
    allowed="a whole number of at least 1",
    convert=lambda raw: _whole(raw, 1),
)
TOKENS = Kind(
    ini_type="int",
    metavar="N",
    allowed=f"a whole number of at least {MIN_TOKENS}: a token is predicted from those before it",
    convert=lambda raw: _whole(raw, MIN_TOKENS),
)
WHOLE = Kind(
    ini_type="int",
    metavar="N",
    allowed=f"a whole number of at least 0 and at most {MAX_WHOLE}",
    convert=lambda raw: _whole(raw, 0),
)
BITS = Kind(
    ini_type="float",
    metavar="BITS",
    allowed=f"a number above 0 and up to {MAX_BITS:g}",
    convert=lambda raw: _above_zero(raw, MAX_BITS),
)
NATS = Kind(
    ini_type="float",
    metavar="NATS",
    allowed="a number above 0, in nats per token",
    convert=lambda raw: _above_zero(raw, sys.float_info.max),
)
SHARE = Kind(
    ini_type="float",
    metavar="SHARE",
    allowed="a number from 0 to 1",
    convert=lambda raw: _amount(raw, 1.0),
)
DRIFT = Kind(
    ini_type="float",
    metavar="SHARE",
    allowed="a number of at least 0 (0.1 is 10%)",
    convert=lambda raw: _amount(raw, sys.float_info.max),
)
SHARD = Kind(
    ini_type="string",
    metavar="I/N",
    allowed="I/N with I from 1 to N, such as 1/4",
    convert=lambda raw: Shard.parse(str(raw)),
)
MEMORY = Kind(
    ini_type="string",
    metavar="SIZE",
    allowed="a size such as 4GiB, or sizes by device such as 0=4GiB,cpu=60GiB",
    convert=lambda raw: MaxMemory.parse(str(raw)),
)
