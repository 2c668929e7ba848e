"""Effective configs: a pair's base ModelOpt config with an overlay applied, and its digest."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_cfg import Entry, active_entry, entry_list
from pytest_autoquant.formats.quant_pair import (
    EXCLUSIONS,
    INPUT_QUANTIZER,
    WEIGHT_QUANTIZER,
    QuantPair,
    compose,
)
from pytest_autoquant.formats.quantizer import (
    COST_ONLY,
    QuantizedTensor,
    QuantizerAttributes,
    ScaleSharing,
    canonical,
)

#: The exclusions that are part of the digests of composed configs.
_DIGESTED = ("*lm_head*", "*visual*")

#: Bits per weight of a layer that is not quantized.
UNQUANTIZED_BITS = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveConfig:
    """What one case asks ModelOpt to do.

    Attributes:
        entries: ModelOpt's ordered ``quant_cfg`` list; the last matching entry wins.
        weight: attributes of the weight quantizer, None where the config disables it.
        input: attributes of the input quantizer, None where the config disables it.
        algorithm: calibration algorithm, ``None`` for none.
        effective_bits: nominal bits per weight, which ModelOpt is given; ``stored_bits`` are a
            shape's.
        notes: what a reader of the result has to know about how the config came about.
        no_effect: why the overlay cannot change anything, or None.
        lost_format: which overlay takes the blocks of a block format away, so that what is left is
            another format, or None.
        digest: sha256 over the canonical config; equal digests mean equal quantized bits.
        is_modelopt_preset: whether the base config was compared with the installed ModelOpt's
            preset of its name and quantizes the same.
    """

    pair: QuantPair
    granularity: Granularity
    entries: tuple[Entry, ...]
    weight: QuantizerAttributes | None
    input: QuantizerAttributes | None
    algorithm: Any
    effective_bits: float
    notes: tuple[str, ...]
    no_effect: str | None
    lost_format: str | None = None
    digest: str
    is_modelopt_preset: bool = False

    @property
    def quantizers(self) -> tuple[tuple[str, QuantizerAttributes | None], ...]:
        """The weight and the input quantizer, each after its pattern in ``quant_cfg``."""
        return (WEIGHT_QUANTIZER, self.weight), (INPUT_QUANTIZER, self.input)

    def scale_shared_by(self, tensor: QuantizedTensor) -> ScaleSharing:
        """Return which values of weights or inputs share one scale; ``nothing`` if unquantized."""
        attributes = self.weight if tensor == "weight" else self.input
        return "nothing" if attributes is None else attributes.scale_shared_by(tensor)

    def padded_width(self, in_features: int) -> int:
        """Return a linear's input width rounded up to whole blocks of the weight quantizer."""
        return in_features if self.weight is None else self.weight.padded_width(in_features)

    def padded_height(self, out_features: int) -> int:
        """Return a linear's outputs rounded up to whole blocks of the weight quantizer."""
        return out_features if self.weight is None else self.weight.padded_height(out_features)

    def stored_bits(self, out_features: int, in_features: int) -> int:
        """Return the bits of a stored weight; see ``QuantizerAttributes.stored_bits``."""
        if self.weight is None:
            return out_features * in_features * int(UNQUANTIZED_BITS)
        return self.weight.stored_bits(out_features, in_features)

    def modelopt(self) -> dict[str, Any]:
        """Return a fresh config that ``QuantizeConfig`` accepts, effective bits included."""
        return {
            "quant_cfg": copy.deepcopy(list(self.entries)),
            "algorithm": copy.deepcopy(self.algorithm),
            "effective_bits": self.effective_bits,
        }

    def without(self, pattern: str) -> EffectiveConfig:
        """Return the config with its weight or its input quantizer disabled.

        Only for probing ModelOpt: bits and notes stay those of the whole config.
        """
        entries = (*self.entries, {"quantizer_name": pattern, "enable": False})
        return replace(
            self,
            entries=entries,
            weight=None if pattern == WEIGHT_QUANTIZER else self.weight,
            input=None if pattern == INPUT_QUANTIZER else self.input,
            digest=_digest(entries, self.algorithm),
        )


def resolve(
    pair: QuantPair, granularity: Granularity, preset: Mapping[str, Any] | None = None
) -> EffectiveConfig:
    """Apply ``granularity`` to the base config of ``pair``.

    Args:
        preset: the base config, in ModelOpt's list form or the older dict form; composed from the
            pair's dtypes when None. It is never mutated.

    Raises:
        UsageError: the overlay touches a quantizer that the base does not configure with one
            plain set of attributes.
    """
    base = compose(pair.weight, pair.activation) if preset is None else preset
    before = entry_list(base["quant_cfg"])
    entries = apply_overlay(before, granularity)
    weight, input_ = (_attributes(entries, name) for name in (WEIGHT_QUANTIZER, INPUT_QUANTIZER))
    algorithm, notes = _calibration(weight, input_, copy.deepcopy(base.get("algorithm", "max")))
    inert = [name for name in granularity.overrides if active_entry(before, name) is None]
    return EffectiveConfig(
        pair=pair,
        granularity=granularity,
        entries=tuple(entries),
        weight=weight,
        input=input_,
        algorithm=algorithm,
        effective_bits=UNQUANTIZED_BITS if weight is None else weight.bits_per_weight,
        notes=(*notes, *_partial_effect(granularity, inert)),
        no_effect=_no_effect(granularity, inert),
        lost_format=_lost_format(before, entries, granularity),
        digest=_digest(_digested(entries) if preset is None else entries, algorithm),
    )


def apply_overlay(entries: Sequence[Entry], granularity: Granularity) -> list[Entry]:
    """Return ``entries`` with the overlay's overrides merged in; the input is not mutated."""
    result = copy.deepcopy(list(entries))
    for pattern, override in granularity.overrides.items():
        index = active_entry(result, pattern)
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
    merged.pop(COST_ONLY, None)
    return merged


def _attributes(entries: Sequence[Entry], pattern: str) -> QuantizerAttributes | None:
    index = active_entry(entries, pattern)
    return None if index is None else QuantizerAttributes.of(entries[index]["cfg"])


def _calibration(
    weight: QuantizerAttributes | None, input_: QuantizerAttributes | None, algorithm: Any
) -> tuple[Any, tuple[str, ...]]:
    """Return the algorithm to use, and a note where it is not the base config's."""
    quantizers = ((WEIGHT_QUANTIZER, weight), (INPUT_QUANTIZER, input_))
    static = [name for name, each in quantizers if each is not None and each.needs_calibration]
    if algorithm is not None or not static:
        return algorithm, ()
    return "max", (
        f"the base config has no calibration algorithm, but {' and '.join(static)} "
        "needs calibration: algorithm set to max",
    )


def _partial_effect(granularity: Granularity, inert: Sequence[str]) -> tuple[str, ...]:
    if inert and len(inert) < len(granularity.overrides):
        return (f"{inert[0]} is disabled by the pair: its override had nothing to act on",)
    return ()


def _no_effect(granularity: Granularity, inert: Sequence[str]) -> str | None:
    if inert and len(inert) == len(granularity.overrides):
        return f"the overlay only touches {' and '.join(inert)}, which the pair disables"
    return None


def _lost_format(
    before: Sequence[Entry], after: Sequence[Entry], granularity: Granularity
) -> str | None:
    for pattern in granularity.overrides:
        base, overlaid = _attributes(before, pattern), _attributes(after, pattern)
        if base is None or overlaid is None or not base.is_block_format:
            continue
        if not overlaid.is_block_format:
            return (
                f"overlay {granularity.name!r} takes the blocks of {base.block_size} of {pattern} "
                "away, and with them their scales: what is left is another format"
            )
    return None


def _digested(composed: Sequence[Entry]) -> list[Entry]:
    """Return the entries that identify a composed config: all have the same exclusions.

    Two of these stand for them, which were all there were when digests were first recorded.
    """
    shared = [entry for entry in EXCLUSIONS if entry["quantizer_name"] not in _DIGESTED]
    return [entry for entry in composed if entry not in shared]


def _digest(entries: Sequence[Entry], algorithm: Any) -> str:
    text = json.dumps([[canonical(entry) for entry in entries], canonical(algorithm)])
    return hashlib.sha256(text.encode()).hexdigest()
