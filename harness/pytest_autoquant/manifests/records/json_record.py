"""Reading, writing and describing versioned JSON records.

Records are plain frozen dataclasses; pydantic validates what is read and gives the JSON schemas.
It is imported on first use, so that importing a record type costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_autoquant.errors import RecordError
from pytest_autoquant.files import load_json
from pytest_autoquant.text import counted, one_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Record = TypeVar("Record")

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}

#: Version of every record's schema; a reader refuses records with a larger one.
SCHEMA_VERSION = 1

#: Pydantic configuration of record types: unknown keys and non-finite numbers are errors.
STRICT = {"extra": "forbid", "allow_inf_nan": False}

#: Longest part of a library's message that an error of ours repeats, in characters.
_LONGEST_MESSAGE = 500


def load_record(kind: type[Record], text: str | bytes, *, source: str, name: str) -> Record:
    """Read a record from JSON.

    Args:
        kind: the record's dataclass.
        source: where the text comes from; error messages start with it.
        name: what the record is called in error messages, e.g. ``manifest``.

    Raises:
        RecordError: the text is not JSON, has no schema version or a newer one, or a field is
            missing or malformed.
    """
    try:
        raw = load_json(text)
    except ValueError as error:
        raise RecordError(f"{source}: is not JSON: {_not_json(error, name)}") from None
    check_version(raw, source=source, name=name)
    return validate_record(kind, raw, source=source, name=name)


def _not_json(error: ValueError, name: str) -> str:
    """Return where a text stops being JSON, or what the JSON standard forbids in it."""
    if isinstance(error, JSONDecodeError):
        return f"not a {name}, error at line {error.lineno}, column {error.colno}"
    return one_line(error, _LONGEST_MESSAGE)


def validate_record(kind: type[Record], raw: object, *, source: str, name: str) -> Record:
    """Build a record from parsed JSON; see ``load_record``."""
    try:
        return adapter(kind).validate_python(raw)
    except (ValueError, OverflowError) as error:
        raise invalid_record(first_problem(error), source=source, name=name) from None


def invalid_record(problem: str, *, source: str, name: str) -> RecordError:
    """Return the error for a record with an invalid part."""
    return RecordError(f"{source}: is not a valid {name}: {one_line(problem, _LONGEST_MESSAGE)}")


def check_version(raw: object, *, source: str, name: str) -> None:
    """Check that a JSON document has a schema version that this package can read.

    Raises:
        RecordError: ``schema_version`` is missing, is not a positive integer, or is newer.
    """
    version = raw.get("schema_version") if isinstance(raw, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordError(f"{source}: is not a {name}: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{source}: was written by a newer version: schema {one_line(version, 20)}, this "
            f"version reads up to {SCHEMA_VERSION}; upgrade pytest-autoquant"
        )


def dump_record(record: object) -> str:
    """Return a record as indented JSON with a final newline; non-finite numbers become null."""
    return adapter(type(record)).dump_json(record, indent=2).decode() + "\n"


def record_schema(kind: type) -> dict[str, Any]:
    """Return the JSON schema of what ``dump_record`` writes."""
    return adapter(kind).json_schema(mode="serialization")


def first_problem(error: Exception) -> str:
    """Return the first field that pydantic refused, its reason, and the number of problems."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return one_line(error, _LONGEST_MESSAGE)
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = one_line(".".join(str(part) for part in first["loc"]), _LONGEST_MESSAGE)
    return f"{where}: {first['msg']} ({counted(error.error_count(), 'problem')})"


def adapter(kind: type[Record]) -> TypeAdapter[Record]:
    """Return pydantic's validator of a record type, built once."""
    if kind not in _ADAPTERS:
        from pydantic import TypeAdapter

        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
