"""The user's own pairs, overlays and schemes: YAML under ``quant_pair/`` and its siblings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from pytest_autoquant.allocation.scheme import MEASURES, Scheme, builtin_schemes
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import Granularity, builtin_granularities, parse_overrides
from pytest_autoquant.formats.quant_pair import (
    ACTIVATION_DTYPES,
    INPUT_QUANTIZER,
    WEIGHT_DTYPES,
    WEIGHT_QUANTIZER,
    QuantPair,
    builtin_pairs,
    composed_format_name,
)
from pytest_autoquant.text import check_name

PAIR_FOLDER = "quant_pair"
GRANULARITY_FOLDER = "quant_granularity"
SCHEME_FOLDER = "scheme"
_PAIR_KEYS = ("name", "weight", "activation", "format_name", "experimental")
_GRANULARITY_KEYS = ("name", "quant_cfg_overrides")
_SCHEME_KEYS = ("name", "candidates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Every pair, overlay and scheme a run knows, built-in ones first."""

    pairs: Mapping[str, QuantPair]
    granularities: Mapping[str, Granularity]
    schemes: Mapping[str, Scheme]


def load_vocabulary(folder: Path | None = None) -> Vocabulary:
    """Return the built-in vocabulary with the definitions under ``folder`` added.

    A file may repeat a built-in definition word for word; it is then the built-in.

    Raises:
        UsageError: a missing folder, a YAML error, an unknown key, an unsafe or duplicate
            name, a name that redefines a built-in. The message names the file and the key.
    """
    pairs, granularities = builtin_pairs(), builtin_granularities()
    schemes = builtin_schemes()
    if folder is not None:
        _check_folder(folder)
        _add(pairs, {path: read_pair(path) for path in _files(folder / PAIR_FOLDER)})
        _add(granularities, {p: read_granularity(p) for p in _files(folder / GRANULARITY_FOLDER)})
        _add(schemes, {path: read_scheme(path) for path in _files(folder / SCHEME_FOLDER)})
    return Vocabulary(
        pairs=MappingProxyType(pairs),
        granularities=MappingProxyType(granularities),
        schemes=MappingProxyType(schemes),
    )


def read_pair(path: Path) -> QuantPair:
    """Read one quant pair: ``name, weight, activation`` and optionally the other two keys."""
    raw = _read(path, _PAIR_KEYS, required=("name", "weight", "activation"))
    weight = _choice(raw, "weight", WEIGHT_DTYPES, path)
    activation = _choice(raw, "activation", ACTIVATION_DTYPES, path)
    composed = composed_format_name(weight, activation)
    format_name = raw.get("format_name", composed)
    experimental = raw.get("experimental", True)
    if not isinstance(experimental, bool):
        raise UsageError(f"{path}: experimental must be true or false, not {experimental!r}")
    if not isinstance(format_name, str) or not format_name.isidentifier():
        raise UsageError(f"{path}: format_name {format_name!r} is not a format name")
    if WEIGHT_DTYPES[weight] is ACTIVATION_DTYPES[activation] is None:
        raise UsageError(f"{path}: weight and activation are both fp16: nothing to quantize")
    return QuantPair(
        name=check_name(raw["name"], where=f"{path}: name"),
        weight=weight,
        activation=activation,
        format_name=format_name,
        experimental=experimental,
        from_preset=format_name != composed,
    )


def read_granularity(path: Path) -> Granularity:
    """Read one overlay: ``name`` and ``quant_cfg_overrides``."""
    raw = _read(path, _GRANULARITY_KEYS, required=_GRANULARITY_KEYS)
    overrides = parse_overrides(raw["quant_cfg_overrides"], where=str(path))
    return Granularity(
        name=check_name(raw["name"], where=f"{path}: name"),
        weight=overrides.get(WEIGHT_QUANTIZER),
        input=overrides.get(INPUT_QUANTIZER),
    )


def read_scheme(path: Path) -> Scheme:
    """Read one scheme: ``name``, ``candidates`` and exactly one of the three measures."""
    raw = _read(path, (*_SCHEME_KEYS, *MEASURES), required=_SCHEME_KEYS)
    given = [measure for measure in MEASURES if measure in raw]
    if len(given) != 1:
        raise UsageError(
            f"{path}: give exactly one of {', '.join(MEASURES)}, not {len(given)} of them"
        )
    candidates, amount = raw["candidates"], raw[given[0]]
    if not isinstance(candidates, list) or not all(isinstance(c, str) for c in candidates):
        raise UsageError(f"{path}: candidates must be a list of quant pairs")
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise UsageError(f"{path}: {given[0]} must be a number, not {amount!r}")
    name = check_name(raw["name"], where=f"{path}: name")
    try:
        return Scheme(
            name=name, candidates=tuple(candidates), measure=given[0], amount=float(amount)
        )
    except OverflowError:
        raise UsageError(f"{path}: {given[0]} is larger than any number of its kind") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _add(known: dict[str, Any], read: Mapping[Path, Any]) -> None:
    builtin = frozenset(known)
    sources: dict[str, Path] = {}
    for path, item in read.items():
        if item.name in sources:
            raise UsageError(f"{path}: name {item.name!r} is also in {sources[item.name]}")
        if item.name in builtin and item != known[item.name]:
            raise UsageError(
                f"{path}: name {item.name!r} redefines a built-in; choose another name"
            )
        sources[item.name] = path
        known[item.name] = item


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"--aq-conf {folder}: no such folder")
    folders = (PAIR_FOLDER, GRANULARITY_FOLDER, SCHEME_FOLDER)
    if not any((folder / name).is_dir() for name in folders):
        raise UsageError(f"--aq-conf {folder}: has none of {', '.join(folders)}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.y*ml") if path.suffix in (".yaml", ".yml"))


def _read(path: Path, keys: tuple[str, ...], *, required: tuple[str, ...]) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506
        repr(raw)  # an integer of 4,301 digits could be named in no message
    except Exception as error:  # PyYAML's constructors raise nearly anything
        raise UsageError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: must be a mapping with {', '.join(keys)}")
    for key in raw:
        if key not in keys:
            raise UsageError(f"{path}: unknown key {key!r}; allowed: {', '.join(keys)}")
    for key in required:
        if key not in raw:
            raise UsageError(f"{path}: key {key!r} is missing")
    return raw


def _choice(raw: Mapping[str, Any], key: str, known: Mapping[str, Any], path: Path) -> str:
    value = raw[key]
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{path}: {key} {value!r} is unknown; known: {', '.join(known)}")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    """``yaml.SafeLoader`` that refuses a key written twice instead of keeping the last.

    It refuses aliases too: a file of a kilobyte could mean gigabytes, or hold itself.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"alias {event.anchor!r}: write it out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
