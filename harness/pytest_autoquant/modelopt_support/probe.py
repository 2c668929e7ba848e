"""Find out what ModelOpt really does with a config, by running it on one small linear.

Nothing here is a table of known limits, and no message text is read: ModelOpt's quantizers run on
the target device, and what they return or raise is the answer. So it stays true when ModelOpt
changes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import (
    EffectiveConfig,
    canonical,
    covers,
    effective_config,
    entry_list,
)
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER, QuantPair
from pytest_autoquant.modelopt_support.status import SUPPORTED, Status, Support
from pytest_autoquant.text import in_words

IN_FEATURES, OUT_FEATURES, TOKENS = 512, 48, 7

_ARGUMENT_ERRORS = (NotImplementedError, TypeError, ValueError, LookupError)
"""Raised for what was asked, wherever it runs. Anything else on a CPU may be the missing GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bits:
    """Fake-quantized weight and input of the probe linear."""

    weight: torch.Tensor
    input: torch.Tensor


class Prober:
    """Answers support questions for one device, each distinct config once."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._answers: dict[str, _Bits | Exception] = {}
        self._elsewhere: Prober | None = None

    def resolve(self, pair: QuantPair, granularity: Granularity) -> EffectiveConfig:
        """Return the effective config, reading a user's preset from the installed ModelOpt.

        Raises:
            UsageError: the preset is not there, or its dtypes are not the pair's.
        """
        base = preset(pair) if pair.from_preset else None
        return effective_config(pair, granularity, base)

    def support(self, config: EffectiveConfig) -> Support:
        """Return the status of ``config`` on this device."""
        if config.no_effect is not None:
            return Support(status=Status.NO_EFFECT, reason=config.no_effect)
        answer = self._run(config)
        if isinstance(answer, Exception):
            return self._refusal(config, answer)
        ignored = self._ignored(config, answer)
        if ignored is not None:
            return Support(status=Status.NO_EFFECT, reason=ignored)
        return SUPPORTED

    def accepts(self, config: EffectiveConfig) -> None:
        """Have ModelOpt's ``QuantizeConfig`` validate the config.

        Raises:
            UsageError: it refuses, in its own words.
        """
        from modelopt.torch.quantization.config import QuantizeConfig

        try:
            QuantizeConfig(**config.modelopt())
        except ValueError as error:
            raise UsageError(
                f"ModelOpt refuses {config.pair.name} with {config.granularity.name}: {error}"
            ) from error

    def _run(self, config: EffectiveConfig) -> _Bits | Exception:
        if config.digest not in self._answers:
            try:
                self._answers[config.digest] = quantized_bits(config, self._device, self._dtype)
            except Exception as error:
                self._answers[config.digest] = error
        return self._answers[config.digest]

    def _refusal(self, config: EffectiveConfig, error: Exception) -> Support:
        if self._device.type == "cuda":
            return Support(status=Status.UNSUPPORTED, reason=in_words(error))
        if torch.cuda.is_available():
            on_cuda = self._on_cuda().support(config)
            if on_cuda.status is not Status.SUPPORTED:
                return on_cuda
            return Support(status=Status.NEEDS_CUDA, reason=in_words(error))
        for each in (error, *self._errors_of_halves(config)):
            if isinstance(each, _ARGUMENT_ERRORS):
                return Support(status=Status.UNSUPPORTED, reason=in_words(each))
        return Support(status=Status.NEEDS_CUDA, reason=in_words(error))

    def _errors_of_halves(self, config: EffectiveConfig) -> Iterator[Exception]:
        """Run each quantizer alone: the first error of both may hide what the second can never."""
        for pattern in (WEIGHT_QUANTIZER, INPUT_QUANTIZER):
            answer = self._run(_without(config, pattern))
            if isinstance(answer, Exception):
                yield answer

    def _on_cuda(self) -> Prober:
        if self._elsewhere is None:
            self._elsewhere = Prober(torch.device("cuda"), torch.bfloat16)
        return self._elsewhere

    def _ignored(self, config: EffectiveConfig, bits: _Bits) -> str | None:
        """Turn the overlay's knobs back: bits that do not move mean a knob that does nothing."""
        plain = self.resolve(config.pair, Granularity(name="default"))
        before = self._run(plain) if plain.digest != config.digest else None
        raw = _probe_tensors(self._device, self._dtype)
        halves = ((WEIGHT_QUANTIZER, "weight", raw.weight), (INPUT_QUANTIZER, "input", raw.input))
        for pattern, half, unquantized in halves:
            cfg = config.quantizer(pattern)
            if cfg is None:
                continue
            now = getattr(bits, half)
            if torch.equal(now, unquantized):
                return f"{pattern} returns its input unchanged"
            moved = canonical(cfg) != canonical(plain.quantizer(pattern))
            if moved and isinstance(before, _Bits) and torch.equal(now, getattr(before, half)):
                return (
                    f"ModelOpt accepts {_asked(config.granularity, pattern)} and ignores it: the "
                    f"quantized {half} bits are those of the default overlay"
                )
        return None


def preset(pair: QuantPair) -> Mapping[str, Any]:
    """Return ``pair.format_name`` from the installed ModelOpt.

    Raises:
        UsageError: this ModelOpt has no such preset, or its dtypes are not the pair's.
    """
    import modelopt
    import modelopt.torch.quantization as mtq

    found = getattr(mtq, pair.format_name, None)
    if not isinstance(found, Mapping) or "quant_cfg" not in found:
        raise UsageError(
            f"pair {pair.name!r}: nvidia-modelopt {modelopt.__version__} has no preset "
            f"{pair.format_name!r}; install a version that has it, or leave format_name out to "
            f"compose {pair.weight} weights with {pair.activation} activations"
        )
    _refuse_partial(pair, found)
    plain = Granularity(name="default")
    composed, base = effective_config(pair, plain), effective_config(pair, plain, found)
    for pattern in (WEIGHT_QUANTIZER, INPUT_QUANTIZER):
        theirs, ours = base.quantizer(pattern), composed.quantizer(pattern)
        if (theirs or {}).get("num_bits") != (ours or {}).get("num_bits"):
            raise UsageError(
                f"pair {pair.name!r}: preset {pair.format_name} sets {pattern} to "
                f"{(theirs or {}).get('num_bits', 'disabled')}, but the pair says "
                f"w{pair.weight} a{pair.activation}"
            )
    return found


def _refuse_partial(pair: QuantPair, found: Mapping[str, Any]) -> None:
    """Refuse a preset that quantizes some layers only: a pair speaks for every linear."""
    entries = entry_list(found["quant_cfg"])
    starts_off = entries and entries[0].get("enable") is False and not entries[0].get("cfg")
    for pattern in (WEIGHT_QUANTIZER, INPUT_QUANTIZER):
        kind = pattern.removeprefix("*")
        for entry in entries:
            name = entry["quantizer_name"]
            if entry.get("cfg") and name.endswith(kind) and not covers(name, pattern):
                raise UsageError(
                    f"pair {pair.name!r}: preset {pair.format_name} quantizes only what matches "
                    f"{name!r}; a pair must speak for every linear"
                )
    if not starts_off:
        raise UsageError(
            f"pair {pair.name!r}: preset {pair.format_name} does not start by disabling every "
            "quantizer, so it leaves ModelOpt's defaults on; it cannot be a pair"
        )


def quantized_bits(config: EffectiveConfig, device: torch.device, dtype: torch.dtype) -> _Bits:
    """Quantize and calibrate one seeded linear with ModelOpt and return its quantized bits.

    Raises whatever ModelOpt raises.
    """
    import modelopt.torch.quantization as mtq

    tensors = _probe_tensors(device, dtype)
    linear = nn.Linear(IN_FEATURES, OUT_FEATURES, bias=False, device=device, dtype=dtype)
    linear.weight.data.copy_(tensors.weight)
    model = nn.Sequential(linear)
    settings = config.modelopt()
    with quiet(), torch.no_grad():
        mtq.quantize(model, settings, forward_loop=lambda m: m(tensors.input))
        model(tensors.input)
        return _Bits(
            weight=model[0].weight_quantizer(tensors.weight),
            input=model[0].input_quantizer(tensors.input),
        )


def _without(config: EffectiveConfig, pattern: str) -> EffectiveConfig:
    """Return the config with one of its two quantizers disabled."""
    entries = (*config.entries, {"quantizer_name": pattern, "enable": False})
    return replace(config, entries=entries, digest=f"{config.digest} without {pattern}")


def misfits(config: EffectiveConfig, in_features: int) -> int | None:
    """Return the input width padded to whole weight blocks, None where the blocks divide it."""
    weight = config.quantizer(WEIGHT_QUANTIZER) or {}
    block_sizes = weight.get("block_sizes") or {}
    block = block_sizes.get(-1, block_sizes.get(1))
    if block is None or in_features % block == 0:
        return None
    return int(-(-in_features // block) * block)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what ModelOpt prints and warns on every single call."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _probe_tensors(device: torch.device, dtype: torch.dtype) -> _Bits:
    """Seeded values whose scale differs along every axis, so that each granularity shows."""
    generator = torch.Generator().manual_seed(0)

    def spread(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator)
        for axis in range(len(shape)):
            sizes = [shape[axis] if i == axis else 1 for i in range(len(shape))]
            values = values * torch.exp(torch.randn(*sizes, generator=generator))
        return values.to(device, dtype)

    return _Bits(weight=spread(OUT_FEATURES, IN_FEATURES), input=spread(2, TOKENS, IN_FEATURES))


def _asked(granularity: Granularity, pattern: str) -> str:
    override = granularity.overrides.get(pattern, {})
    return ", ".join(f"{key} {_plain(value)}" for key, value in override.items()) or pattern


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
