"""The user's quant pairs and granularities (overlays) as YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator

from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import (
    ACTIVATION_DTYPES,
    INPUT_QUANTIZER,
    UNQUANTIZED,
    WEIGHT_DTYPES,
    WEIGHT_QUANTIZER,
    QuantPair,
    builtin_pairs,
    composed_format_name,
)
from pytest_autoquant.formats.quantizer import SCALING_TYPES
from pytest_autoquant.formats.strict_yaml import (
    Definition,
    Ignored,
    Name,
    StrictMapping,
    checked,
    is_integer,
    one_of,
    read_yaml,
    refuse,
    shown,
    validated,
)

_AXIS_AS_TEXT = re.compile(r"-?[0-9]+")

FormatName = Annotated[
    str,
    checked(
        lambda value: isinstance(value, str) and value.isidentifier(),
        "must be a name of letters, digits and _",
    ),
]
ScalingType = Annotated[str, one_of(SCALING_TYPES)]
BlockSize = Annotated[
    int | None,
    checked(
        lambda value: value is None or (is_integer(value) and value > 0),
        "must be a positive integer or null",
    ),
]


class _PairFile(StrictMapping):
    name: Name
    weight: Annotated[str, one_of(WEIGHT_DTYPES)]
    activation: Annotated[str, one_of(ACTIVATION_DTYPES)]
    format_name: FormatName = ""
    experimental: bool = True
    scheme_name: Ignored = None
    coverage_mode: Ignored = None
    publish_run_dir: Ignored = None

    @model_validator(mode="after")
    def _check_quantizes(self) -> _PairFile:
        if self.weight == self.activation == UNQUANTIZED:
            refuse(f"weight and activation must not both be {UNQUANTIZED}: nothing is quantized")
        return self

    def pair(self) -> QuantPair:
        composed = composed_format_name(self.weight, self.activation)
        format_name = self.format_name or composed
        builtin = builtin_pairs().get(self.name)
        experimental = self.experimental
        if builtin is not None and "experimental" not in self.model_fields_set:
            experimental = builtin.experimental
        return QuantPair(
            name=self.name,
            weight=self.weight,
            activation=self.activation,
            format_name=format_name,
            experimental=experimental,
            from_preset=format_name != composed,
        )


def _axis(value: Any) -> int | tuple[int, ...] | None:
    if value is None or is_integer(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, (list, tuple)) and value and all(map(is_integer, value)):
        return tuple(value)
    raise ValueError("must be null, an integer or a list of integers")


def _scale_bits(value: Any) -> int | tuple[int, int]:
    """Check ``scale_bits`` as ModelOpt types it: ``num_bits`` of the scales of blocks.

    ``QuantizerAttributeConfig.block_sizes`` in ``modelopt/torch/quantization/config.py`` (0.47.0).
    """
    if is_integer(value) and value > 0:
        return int(value)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        exponent, mantissa = value
        if all(is_integer(bits) and bits >= 0 for bits in value) and exponent + mantissa > 0:
            return exponent, mantissa
    raise ValueError("must be a positive integer or a list [exponent bits, mantissa bits]")


def _scale_block_sizes(value: Any) -> dict[int, int]:
    if isinstance(value, Mapping) and value:
        sizes = {_axis_key(key): size for key, size in value.items()}
        if None not in sizes and all(is_integer(s) and s > 0 for s in sizes.values()):
            return sizes  # type: ignore[return-value]
    raise ValueError("must map axes to positive integers, for example {-1: 256}")


def _axis_key(key: object) -> int | None:
    """Return the axis that a key of ``block_sizes`` names, None if it is not an integer."""
    if isinstance(key, str) and _AXIS_AS_TEXT.fullmatch(key):
        return int(key)
    return int(key) if is_integer(key) else None  # type: ignore[call-overload]


class _BlockSizes(StrictMapping, extra="allow"):
    """Block sizes by axis, kept as extra fields under the axis as text, and ModelOpt's own keys."""

    __pydantic_extra__: dict[str, BlockSize]
    type: ScalingType = "static"
    scale_bits: Annotated[int | tuple[int, int] | None, PlainValidator(_scale_bits)] = None
    scale_block_sizes: Annotated[dict[int, int] | None, PlainValidator(_scale_block_sizes)] = None

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, raw: object) -> object:
        special = ", ".join(cls.model_fields)
        if not isinstance(raw, Mapping):
            refuse(f"must be a mapping such as {{-1: 64}}, got {shown(raw)}")
        values: dict[str, object] = {}
        for key, value in raw.items():
            axis = _axis_key(key)
            if axis is None and key not in cls.model_fields:
                refuse(f"key {shown(key)} must be an axis (an integer) or one of {special}")
            field = str(key if axis is None else axis)
            if field in values:
                refuse(f"axis {field} is written twice")
            values[field] = value
        if not values.keys() - cls.model_fields.keys():
            refuse("must have an axis, for example -1: 64")
        return values

    def attributes(self) -> Mapping[int | str, Any]:
        special = [key for key in type(self).model_fields if key in self.model_fields_set]
        axes = {int(axis): size for axis, size in self.__pydantic_extra__.items()}
        return MappingProxyType(axes | {key: getattr(self, key) for key in special})


class _Override(StrictMapping):
    """The override of one quantizer; keys that are not given stay as the pair has them."""

    unknown_key_hint = "; the quant pair sets the dtype"

    axis: Annotated[int | tuple[int, ...] | None, PlainValidator(_axis)] = None
    block_sizes: _BlockSizes = Field(default_factory=_BlockSizes.model_construct)
    type: ScalingType = "static"

    @model_validator(mode="after")
    def _check_exclusive(self) -> _Override:
        if not self.model_fields_set:
            refuse(f"must not be empty; give {', '.join(type(self).model_fields)}, or leave it out")
        if {"axis", "block_sizes"} <= self.model_fields_set:
            refuse("axis and block_sizes exclude each other; give one")
        return self

    def attributes(self) -> Mapping[str, Any] | None:
        if not self.model_fields_set:
            return None
        values: dict[str, Any] = {"axis": self.axis, "type": self.type}
        if "block_sizes" in self.model_fields_set:
            values["block_sizes"] = self.block_sizes.attributes()
        return MappingProxyType({k: v for k, v in values.items() if k in self.model_fields_set})


class _Overrides(StrictMapping):
    weight: _Override = Field(
        default_factory=_Override.model_construct, validation_alias=WEIGHT_QUANTIZER
    )
    input: _Override = Field(
        default_factory=_Override.model_construct, validation_alias=INPUT_QUANTIZER
    )


class _GranularityFile(StrictMapping):
    name: Name
    quant_cfg_overrides: _Overrides | None

    def granularity(self) -> Granularity:
        overrides = self.quant_cfg_overrides or _Overrides()
        return Granularity(
            name=self.name,
            weight=overrides.weight.attributes(),
            input=overrides.input.attributes(),
        )


def read_pair(path: Path) -> Definition[QuantPair]:
    """Read one quant pair: ``name``, ``weight``, ``activation`` and two optional keys.

    ``format_name`` defaults to the composed format's name, ``experimental`` to true, and to what it
    is for a built-in pair of the name. Keys that other tools keep in such files are ignored.

    Raises:
        UsageError: see ``read_yaml``.
    """
    document = read_yaml(path, _PairFile)
    return Definition(value=document.pair(), notes=document.notes(path))


def read_granularity(path: Path) -> Definition[Granularity]:
    """Read one overlay: ``name`` and ``quant_cfg_overrides``.

    Raises:
        UsageError: see ``read_yaml``.
    """
    return Definition(value=read_yaml(path, _GranularityFile).granularity())


def granularity_of(document: object, *, source: Path | str) -> Granularity:
    """Return the overlay that a YAML document defines.

    Block sizes under text keys such as ``"-1"`` get integer keys.

    Raises:
        UsageError: the document does not fit; the message begins with ``source`` and the key.
    """
    return validated(document, _GranularityFile, source=source).granularity()
