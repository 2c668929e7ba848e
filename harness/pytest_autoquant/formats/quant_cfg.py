"""ModelOpt's ``quant_cfg``: which quantizers of a model get which attributes.

Since ModelOpt 0.44 it is an ordered list of entries, of which the last that matches wins; it was a
dict before. Source: ``QuantizeConfig`` in ``modelopt/torch/quantization/config.py`` (0.47.0).
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: An entry as ModelOpt takes it: ``quantizer_name``, ``cfg``, ``enable``, ``parent_class``.
Entry = dict[str, Any]


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


def active_entry(entries: Sequence[Entry], pattern: str) -> int | None:
    """Return the index of the entry that configures ``pattern``, None if that quantizer is off.

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


def is_enabled(entries: Sequence[Entry], quantizer: str) -> bool:
    """Whether entries leave a quantizer on; entries of a parent class do not count."""
    on = True
    for entry in entries:
        if not entry.get("parent_class") and fnmatch.fnmatchcase(
            quantizer, entry["quantizer_name"]
        ):
            on = entry.get("enable", True)
    return on


def recorded_entries(effective_quant_cfg: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Return the ``effective_quant_cfg`` of a manifest as ModelOpt takes it.

    JSON has neither integer keys nor tuples: the axes in ``block_sizes`` become integers again,
    lists tuples. With the manifest's ``algorithm`` it quantizes what was measured.
    """
    return [_from_json(entry) for entry in effective_quant_cfg]


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_axis_or_name(key): _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        is_plain = not any(isinstance(item, Mapping) for item in value)
        return tuple(value) if is_plain else [_from_json(item) for item in value]
    return value


def _axis_or_name(key: str) -> int | str:
    return int(key) if key.removeprefix("-").isdecimal() else key


def covers(entry_pattern: str, pattern: str) -> bool:
    """Whether an entry reaches every quantizer of one kind, e.g. ``*`` all weight quantizers."""
    return fnmatch.fnmatchcase(pattern.removeprefix("*"), entry_pattern)


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
