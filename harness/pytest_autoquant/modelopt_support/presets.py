"""The configs that the installed ModelOpt ships, as base configs of quant pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import EffectiveConfig, resolve
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.formats.quant_cfg import covers, entry_list
from pytest_autoquant.formats.quant_pair import (
    EXCLUSIONS,
    INPUT_QUANTIZER,
    WEIGHT_QUANTIZER,
    QuantPair,
    advice,
)
from pytest_autoquant.formats.quantizer import NumBits, QuantizerAttributes, canonical


def load_preset(pair: QuantPair) -> Mapping[str, Any]:
    """Return ``pair.format_name`` from the installed ModelOpt.

    Raises:
        UsageError: this ModelOpt has no such preset, it quantizes only some of the linears, or its
            dtypes are not the pair's.
    """
    import modelopt

    preset = _installed(pair.format_name)
    if preset is None:
        raise UsageError(
            f"pair {pair.name!r}: nvidia-modelopt {modelopt.__version__} has no preset "
            f"{pair.format_name!r}{_closest(pair.format_name)}; install a version that has it, or "
            f"{advice(pair.weight, pair.activation, pair.format_name)}"
        )
    _check_covers_every_linear(pair, preset)
    _check_dtypes(pair, preset)
    return preset


def check_presets(pairs: Iterable[QuantPair]) -> None:
    """Load the preset of every pair that is read from the installed ModelOpt.

    Raises:
        UsageError: one message with what ``load_preset`` says of each pair that it refuses.
    """
    problems = []
    for pair in pairs:
        try:
            load_preset(pair)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def is_installed_preset(config: EffectiveConfig) -> bool:
    """Whether the base of a config quantizes as the installed preset of its name does.

    Compared entry by entry, quantizers by the blocks that are executed: ``W4A8_NVFP4_FP8_CFG``
    declares 32.
    """
    if config.pair.from_preset:
        return True
    preset = _installed(config.pair.format_name)
    if preset is None:
        return False
    ours, theirs = resolve(config.pair, DEFAULT), resolve(config.pair, DEFAULT, preset)
    return _executed(ours) == _executed(theirs)


def _closest(format_name: str) -> str:
    """Name the installed preset of the most similar name, if there is one."""
    import modelopt.torch.quantization as mtq

    names = [name for name in dir(mtq) if _installed(name) is not None]
    close = get_close_matches(format_name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _installed(format_name: str) -> Mapping[str, Any] | None:
    import modelopt.torch.quantization as mtq

    preset = getattr(mtq, format_name, None)
    return preset if isinstance(preset, Mapping) and "quant_cfg" in preset else None


def _executed(config: EffectiveConfig) -> tuple[Any, ...]:
    """Return what a config executes, in a form that is equal where two configs do the same."""
    quantizers = [
        None if each is None else replace(each, blocks=each.executed_blocks)
        for _, each in config.quantizers
    ]
    others = [
        canonical(entry)
        for entry in config.entries
        if entry["quantizer_name"] not in (WEIGHT_QUANTIZER, INPUT_QUANTIZER)
    ]
    return *quantizers, others, canonical(config.algorithm)


def _check_covers_every_linear(pair: QuantPair, preset: Mapping[str, Any]) -> None:
    entries = entry_list(preset["quant_cfg"])
    for pattern in (WEIGHT_QUANTIZER, INPUT_QUANTIZER):
        kind = pattern.removeprefix("*")
        for entry in entries:
            name = entry["quantizer_name"]
            if entry.get("cfg") and name.endswith(kind) and not covers(name, pattern):
                raise UsageError(
                    f"pair {pair.name!r}: preset {pair.format_name} quantizes only what matches "
                    f"{name!r}; a pair must configure every linear"
                )
    for entry in entries[1:]:
        is_quantizer = entry["quantizer_name"] in (WEIGHT_QUANTIZER, INPUT_QUANTIZER)
        if not (entry.get("enable", True) or is_quantizer or entry in EXCLUSIONS):
            raise UsageError(
                f"pair {pair.name!r}: preset {pair.format_name} leaves out what matches "
                f"{entry['quantizer_name']!r}; a pair must configure every linear"
            )
    if not entries or entries[0].get("enable") is not False or entries[0].get("cfg"):
        raise UsageError(
            f"pair {pair.name!r}: preset {pair.format_name} does not start by disabling every "
            "quantizer, so it leaves ModelOpt's defaults on; it cannot be a pair"
        )


def _check_dtypes(pair: QuantPair, preset: Mapping[str, Any]) -> None:
    actual, expected = resolve(pair, DEFAULT, preset), resolve(pair, DEFAULT)
    for (pattern, theirs), (_, ours) in zip(actual.quantizers, expected.quantizers, strict=True):
        if _num_bits(theirs) != _num_bits(ours):
            raise UsageError(
                f"pair {pair.name!r}: preset {pair.format_name} sets {pattern} to "
                f"{_num_bits(theirs) or 'disabled'}, but the pair has weight {pair.weight} and "
                f"activation {pair.activation}"
            )


def _num_bits(attributes: QuantizerAttributes | None) -> NumBits | None:
    return None if attributes is None else attributes.num_bits
