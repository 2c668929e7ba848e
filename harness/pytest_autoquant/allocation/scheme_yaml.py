"""The user's schemes as YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainValidator, model_validator

from pytest_autoquant.allocation.scheme import MEASURES, Measure, Scheme
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.strict_yaml import (
    Definition,
    Name,
    StrictMapping,
    read_yaml,
    refuse,
)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("must be a number that a 64-bit float can hold") from None


#: None stands for a key that is not given; ``null`` is refused.
_Amount = Annotated[float | None, PlainValidator(_number)]


class _SchemeFile(StrictMapping):
    name: Name
    candidates: list[str]
    fraction_of_groups: _Amount = None
    fraction_of_weights: _Amount = None
    effective_bits: _Amount = None
    max_kl: _Amount = None

    @model_validator(mode="after")
    def _check_one_measure(self) -> _SchemeFile:
        given = self._measures()
        if len(given) != 1:
            keys = ", ".join(given) or "none of them"
            refuse(f"must have exactly one of {', '.join(MEASURES)}, got {keys}")
        return self

    def _measures(self) -> list[Measure]:
        return [measure for measure in MEASURES if measure in self.model_fields_set]

    def scheme(self) -> Scheme:
        (measure,) = self._measures()
        return Scheme(
            name=self.name,
            candidates=tuple(self.candidates),
            measure=measure,
            amount=getattr(self, measure),
        )


def read_scheme(path: Path) -> Definition[Scheme]:
    """Read one scheme: ``name``, ``candidates`` and exactly one of ``MEASURES``.

    Raises:
        UsageError: see ``read_yaml``, or the rule is not valid, see ``Scheme``.
    """
    document = read_yaml(path, _SchemeFile)
    try:
        return Definition(value=document.scheme())
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
