"""Effective configs: a pair's base ModelOpt config with an overlay applied, and its digest."""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import SPECIAL_BLOCK_KEYS, Granularity
from pytest_autoquant.formats.quant_pair import (
    INPUT_QUANTIZER,
    WEIGHT_QUANTIZER,
    QuantPair,
    compose,
)

Entry = dict[str, Any]

ATTRIBUTE_DEFAULTS: Mapping[str, Any] = {"enable": True, "axis": None, "type": "static"}
"""ModelOpt's ``QuantizerAttributeConfig`` defaults: spelling one out changes no bits."""

UNQUANTIZED_BITS = 16.0
_SCALE_BITS = 16
_MINIFLOAT_SCALE_BITS = 8
_COST_ONLY = "effective_bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveConfig:
    """What one case asks ModelOpt to do.

    Attributes:
        entries: ModelOpt's ordered ``quant_cfg`` list; the last matching entry wins.
        algorithm: calibration algorithm, ``None`` for none.
        effective_bits: bits stored per weight, scales included.
        notes: what a reader of the result has to know about how the config came about.
        no_effect: why the overlay cannot change anything, or None.
        digest: sha256 over the canonical config; equal digests mean equal quantized bits.
    """

    pair: QuantPair
    granularity: Granularity
    entries: tuple[Entry, ...]
    algorithm: Any
    effective_bits: float
    notes: tuple[str, ...]
    no_effect: str | None
    digest: str

    def modelopt(self) -> dict[str, Any]:
        """Return a fresh config that ``QuantizeConfig`` accepts, effective bits included."""
        return {
            "quant_cfg": copy.deepcopy(list(self.entries)),
            "algorithm": copy.deepcopy(self.algorithm),
            "effective_bits": self.effective_bits,
        }

    def quantizer(self, pattern: str) -> Mapping[str, Any] | None:
        """Return the attributes of ``*weight_quantizer`` or ``*input_quantizer``, None if off."""
        return active_quantizer(self.entries, pattern)


def effective_config(
    pair: QuantPair, granularity: Granularity, base: Mapping[str, Any] | None = None
) -> EffectiveConfig:
    """Apply ``granularity`` to the base config of ``pair``.

    Args:
        base: the config to start from, in ModelOpt's list form or the older dict form; composed
            from the pair's dtypes when None. It is never mutated.

    Raises:
        UsageError: the overlay touches a quantizer that the base does not configure with one
            plain set of attributes.
    """
    source = compose(pair.weight, pair.activation) if base is None else base
    before = entry_list(source["quant_cfg"])
    entries = apply_overlay(before, granularity)
    algorithm, notes = _calibration(entries, copy.deepcopy(source.get("algorithm", "max")))
    inert = [name for name in granularity.overrides if active_quantizer(before, name) is None]
    if inert and len(inert) < len(granularity.overrides):
        notes = (*notes, f"{inert[0]} is disabled by the pair: its override had nothing to act on")
    return EffectiveConfig(
        pair=pair,
        granularity=granularity,
        entries=tuple(entries),
        algorithm=algorithm,
        effective_bits=stored_bits(active_quantizer(entries, WEIGHT_QUANTIZER)),
        notes=notes,
        no_effect=_no_effect(granularity, inert),
        digest=_digest(entries, algorithm),
    )


def apply_overlay(entries: Sequence[Entry], granularity: Granularity) -> list[Entry]:
    """Return ``entries`` with the overlay's halves merged in; the input is not mutated."""
    result = copy.deepcopy(list(entries))
    for pattern, override in granularity.overrides.items():
        index = _active_index(result, pattern)
        if index is None:
            continue
        cfg = result[index]["cfg"]
        if not isinstance(cfg, Mapping):
            raise UsageError(
                f"overlay {granularity.name!r} cannot change {pattern}: the base config gives it "
                f"{len(cfg)} quantizers in sequence; use the default overlay with this pair"
            )
        result[index]["cfg"] = merge_override(cfg, override)
    return result


def merge_override(cfg: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge an override into quantizer attributes.

    ``axis`` and ``block_sizes`` exclude each other, so setting one removes the other; block sizes
    merge key by key, so ``type`` and ``scale_bits`` of the base survive a new block size.
    """
    merged = copy.deepcopy(dict(cfg))
    for key, value in override.items():
        if key == "axis":
            merged.pop("block_sizes", None)
            merged["axis"] = value
        elif key == "block_sizes":
            merged.pop("axis", None)
            merged["block_sizes"] = {**(merged.get("block_sizes") or {}), **value}
        else:
            merged[key] = value
    merged.pop(_COST_ONLY, None)
    return merged


def entry_list(quant_cfg: Any) -> list[Entry]:
    """Return ``quant_cfg`` as ModelOpt's ordered entry list, deep-copied.

    Accepts the list form (ModelOpt 0.44 and later) and the older dict form, whose ``default`` key
    means ``*`` and applies first, and whose ``nn.<Class>`` keys scope entries to a parent class.
    """
    if isinstance(quant_cfg, Mapping):
        rows = sorted(quant_cfg.items(), key=lambda row: row[0] != "default")
        return [entry for key, value in rows for entry in _from_dict_form(key, value)]
    entries: list[Entry] = []
    for entry in quant_cfg:
        if "quantizer_name" in entry:
            entries.append(copy.deepcopy(dict(entry)))
        else:
            entries += entry_list(entry)
    return entries


def active_quantizer(entries: Sequence[Entry], pattern: str) -> Mapping[str, Any] | None:
    """Return the attributes under ``pattern``, None where that quantizer is disabled."""
    index = _active_index(entries, pattern)
    if index is None:
        return None
    cfg = entries[index]["cfg"]
    return cfg if isinstance(cfg, Mapping) else cfg[0]


def is_sequential(entries: Sequence[Entry], pattern: str) -> bool:
    """Whether ``pattern`` configures several quantizers one after the other."""
    index = _active_index(entries, pattern)
    return index is not None and not isinstance(entries[index]["cfg"], Mapping)


def covers(entry_pattern: str, pattern: str) -> bool:
    """Whether an entry reaches every quantizer of one kind, e.g. ``*`` all weight quantizers."""
    return fnmatch.fnmatchcase(pattern.removeprefix("*"), entry_pattern)


def stored_bits(weight: Mapping[str, Any] | None) -> float:
    """Return the bits stored per weight, scales included.

    A block of ``b`` weights adds its scale's bits over ``b``: 8 for an FP8 or E8M0 scale, else 16.
    Scales per channel or per tensor count as free. MXFP4 4.25, NVFP4 4.5, INT4 in groups of 128
    4.125, unquantized 16.
    """
    if weight is None:
        return UNQUANTIZED_BITS
    num_bits = weight["num_bits"]
    width = float(num_bits if isinstance(num_bits, int) else sum(num_bits) + 1)
    block_sizes = weight.get("block_sizes") or {}
    sizes = [size for axis, size in block_sizes.items() if axis not in SPECIAL_BLOCK_KEYS]
    if not sizes or None in sizes:
        return width
    scale = _MINIFLOAT_SCALE_BITS if block_sizes.get("scale_bits") else _SCALE_BITS
    return width + scale / float(math.prod(sizes))


def canonical(value: Any) -> Any:
    """Return a JSON-ready form in which equal meanings are equal: no defaults, sorted keys."""
    if isinstance(value, Mapping):
        kept = {
            str(key): canonical(item)
            for key, item in value.items()
            if key != _COST_ONLY
            and not (key in ATTRIBUTE_DEFAULTS and item == ATTRIBUTE_DEFAULTS[key])
        }
        return dict(sorted(kept.items()))
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def _active_index(entries: Sequence[Entry], pattern: str) -> int | None:
    """Index of the entry that configures ``pattern``, None if that quantizer ends up off.

    As in ModelOpt: entries apply in order, one with a ``cfg`` configures and enables unless it says
    otherwise, one without only toggles.
    """
    configured, is_enabled = None, False
    for index, entry in enumerate(entries):
        if entry.get("parent_class") or not covers(entry["quantizer_name"], pattern):
            continue
        if entry.get("cfg"):
            configured = index
        is_enabled = entry.get("enable", True)
    return configured if is_enabled else None


def _from_dict_form(key: str, value: Any) -> list[Entry]:
    if key.startswith("nn."):
        return [
            {"parent_class": key, **entry}
            for pattern, scoped in value.items()
            for entry in _from_dict_form(pattern, scoped)
        ]
    name = "*" if key == "default" else key
    if not isinstance(value, Mapping):
        return [{"quantizer_name": name, "cfg": copy.deepcopy(list(value))}]
    cfg = {k: copy.deepcopy(v) for k, v in value.items() if k != "enable"}
    entry: Entry = {"quantizer_name": name}
    if cfg:
        entry["cfg"] = cfg
    if "enable" in value:
        entry["enable"] = value["enable"]
    return [entry]


def _calibration(entries: Sequence[Entry], algorithm: Any) -> tuple[Any, tuple[str, ...]]:
    halves = {name: active_quantizer(entries, name) for name in (WEIGHT_QUANTIZER, INPUT_QUANTIZER)}
    static = [name for name, cfg in halves.items() if cfg is not None and not _is_dynamic(cfg)]
    if algorithm is not None or not static:
        return algorithm, ()
    return "max", (
        f"the base config has no calibration algorithm, but {' and '.join(static)} "
        "needs calibration: algorithm set to max",
    )


def _is_dynamic(cfg: Mapping[str, Any]) -> bool:
    block_sizes = cfg.get("block_sizes") or {}
    is_mx = block_sizes.get("type") == "dynamic" and tuple(block_sizes.get("scale_bits") or ()) == (
        8,
        0,
    )
    return cfg.get("type") == "dynamic" or is_mx


def _no_effect(granularity: Granularity, inert: Sequence[str]) -> str | None:
    if inert and len(inert) == len(granularity.overrides):
        return f"the overlay only touches {' and '.join(inert)}, which the pair disables"
    return None


def _digest(entries: Sequence[Entry], algorithm: Any) -> str:
    text = json.dumps([[canonical(entry) for entry in entries], canonical(algorithm)])
    return hashlib.sha256(text.encode()).hexdigest()
