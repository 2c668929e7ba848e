"""Read the user's YAML files strictly, and validate them with pydantic models.

Every error names the file, the key, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, NoReturn, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.types import StringConstraints
from pydantic_core import ErrorDetails, PydanticCustomError

from pytest_autoquant.errors import UsageError
from pytest_autoquant.text import in_words, is_slug, one_line

_T = TypeVar("_T", bound="StrictMapping")
_V = TypeVar("_V")

#: Longest value that a message repeats.
_MAX_VALUE_LENGTH = 200

_MERGE_TAG = "tag:yaml.org,2002:merge"

#: Sentences for pydantic's error types, https://docs.pydantic.dev/latest/errors/validation_errors/.
_SENTENCES = {
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "string_type": "must be text",
    "string_pattern_mismatch": "must consist of a-z, 0-9 and _ only",
}


def _portable(name: str) -> str:
    """Check that a name is a folder's on every system, and is not cut where it becomes one."""
    if not is_slug(name):
        raise ValueError("must have at most 120 characters and not be a device's, such as con")
    return name


#: A name that is safe in a path and in a test id.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$"), AfterValidator(_portable)]


class _Ignored:
    """Marks a key that is accepted and has no meaning here."""


#: A key that is accepted, whatever its value is, and that ``StrictMapping.notes`` names.
Ignored = Annotated[Any, _Ignored()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition(Generic[_V]):
    """What a file defines.

    Attributes:
        notes: what the user has to know about the file, each beginning with its path.
    """

    value: _V
    notes: tuple[str, ...] = ()


class StrictMapping(BaseModel):
    """A mapping of known keys whose values are not converted: ``"8"`` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    #: What a message about an unknown key adds.
    unknown_key_hint: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, raw: object) -> object:
        keys = {str(f.validation_alias or name): f for name, f in cls.model_fields.items()}
        allowed = ", ".join(key for key, field in keys.items() if not _is_ignored(field))
        if not isinstance(raw, Mapping):
            refuse(f"must be a mapping with the keys {allowed}, got {shown(raw)}")
        unknown = [f"unknown key {shown(key)}" for key in raw if key not in keys]
        missing = [
            f"key {key!r} is missing"
            for key, field in keys.items()
            if field.is_required() and key not in raw
        ]
        if unknown or missing:
            hint = cls.unknown_key_hint if unknown else ""
            refuse(f"{', '.join((*unknown, *missing))}; allowed: {allowed}{hint}")
        return raw

    def notes(self, source: Path | str) -> tuple[str, ...]:
        """Return a note on the keys that were given and are ignored, if there are any."""
        fields = type(self).model_fields
        names = [name for name in fields if name in self.model_fields_set]
        ignored = [name for name in names if _is_ignored(fields[name])]
        return (f"{source}: ignored: {', '.join(ignored)}",) if ignored else ()


def _is_ignored(field: FieldInfo) -> bool:
    return any(isinstance(mark, _Ignored) for mark in field.metadata)


def refuse(problem: str) -> NoReturn:
    """Refuse a whole mapping in a validator; ``problem`` is the complete message.

    A validator of one value raises ``ValueError`` instead; the message then adds the value.
    """
    raise PydanticCustomError("problem", "{problem}", {"problem": problem})


def shown(value: object) -> str:
    """Return a value as messages repeat it: on one line, printable, cut to 200 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return one_line(repr(value), _MAX_VALUE_LENGTH)


def checked(is_valid: Callable[[Any], bool], rule: str) -> PlainValidator:
    """Return a validator that takes values as they are; ``rule`` begins with "must be"."""

    def check(value: object) -> object:
        if not is_valid(value):
            raise ValueError(rule)
        return value

    return PlainValidator(check)


def one_of(allowed: Collection[str]) -> PlainValidator:
    """Return a validator for text that is one of ``allowed``."""
    return checked(
        lambda value: isinstance(value, str) and value in allowed,
        f"must be one of {', '.join(allowed)}",
    )


def is_integer(value: object) -> bool:
    """Return whether a value is an integer; ``true`` and ``false`` are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_yaml(path: Path, model: type[_T]) -> _T:
    """Read a YAML file of one mapping.

    Raises:
        UsageError: the file cannot be read, is not strict YAML, or does not fit ``model``.
    """
    return validated(read_document(path), model, source=path)


def read_document(path: Path) -> object:
    """Read a YAML file, whatever it holds.

    Raises:
        UsageError: the file cannot be read, or is not strict YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _parse(text, path)


def validated(document: object, model: type[_T], *, source: Path | str) -> _T:
    """Return a YAML document as ``model``.

    Raises:
        UsageError: it does not fit; the message has a line for each problem, which begins with
            ``source`` and the key.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        lines = [f"{source}: {_message(problem)}" for problem in error.errors()]
        raise UsageError("\n".join(lines)) from None


def _message(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "problem":
        return f"{key}: {error['msg']}" if key else error["msg"]
    if error["type"] == "value_error":
        rule = str(error["ctx"]["error"])
    else:
        rule = _SENTENCES.get(error["type"], error["msg"])
    return f"{key} {rule}, got {shown(error['input'])}"


def _parse(text: str, path: Path) -> object:
    try:
        document: object = yaml.load(text, Loader=_StrictLoader)  # noqa: S506
        repr(document)  # raises ValueError for integers of over 4300 digits, which messages repeat
    except yaml.MarkedYAMLError as error:
        problem = one_line(", ".join(filter(None, (error.context, error.problem))))
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UsageError(f"{path}: is not valid YAML: {problem}{where}") from None
    except Exception as error:  # PyYAML's constructors raise many types, RecursionError included
        raise UsageError(f"{path}: is not valid YAML: {in_words(error)}") from None
    return document


class _StrictLoader(yaml.SafeLoader):
    """``yaml.SafeLoader`` that refuses aliases, merge keys and keys that are written twice.

    Aliases let a file of one kilobyte stand for gigabytes, or contain itself. Of a key written
    twice, PyYAML keeps the last value.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"alias {event.anchor!r} is not allowed; repeat the value"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return super().construct_mapping(node, deep=deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Compare keys as constructed, as the resulting dict does: ``1`` equals ``0x1``."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE_TAG:
                self._refuse_key(key_node, "merge key << is not allowed; write the keys out")
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                self._refuse_key(key_node, "a key must be text, a number, true, false or null")
            if key in seen:
                self._refuse_key(key_node, f"key {shown(key)} is written twice")
            seen.add(key)

    @staticmethod
    def _refuse_key(node: yaml.Node, problem: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
