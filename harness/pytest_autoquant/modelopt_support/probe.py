"""Find out what ModelOpt really does with a config, by running it on one small linear.

Nothing here is a table of known limits, and no message text is read: ModelOpt's quantizers run on
the target device, and what they return or raise is the answer. So it stays true when ModelOpt
changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import EffectiveConfig, resolve
from pytest_autoquant.formats.granularity import DEFAULT, Granularity
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER, QuantPair
from pytest_autoquant.formats.quantizer import (
    QuantizedTensor,
    QuantizerAttributes,
    canonical,
)
from pytest_autoquant.modelopt_support.presets import is_installed_preset, load_preset
from pytest_autoquant.modelopt_support.private_api import validate_config
from pytest_autoquant.modelopt_support.probe_cache import ProbeBits, ProbeCache, ProbedOn
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.modelopt_support.status import SUPPORTED, Status, Support
from pytest_autoquant.text import in_words

#: Shape of the probe: whole blocks of 16, 32, 64 and 128, and as few rows as keep it fast.
IN_FEATURES, OUT_FEATURES, TOKENS = 512, 48, 7

#: Raised for the arguments, on any device. Anything else on a CPU may be the missing GPU.
_ARGUMENT_ERRORS = (NotImplementedError, TypeError, ValueError, LookupError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTensors:
    """Weight ``(OUT_FEATURES, IN_FEATURES)`` and input ``(2, TOKENS, IN_FEATURES)`` of the probe.

    Before or after they were fake-quantized.
    """

    weight: torch.Tensor
    input: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedPart:
    """What is run at once: one quantizer of a config, or a whole config.

    Attributes:
        tensors: ``weight``, ``input`` or both: those whose bits are wanted.
        key: digest of what is run; equal parts of several configs run once.
    """

    config: EffectiveConfig
    tensors: tuple[QuantizedTensor, ...]
    key: str


class Prober:
    """Answers support questions for one device, each distinct quantizer once.

    Args:
        is_cached: whether what ran is remembered in the user's cache folder.
        before_first: called before the first quantizer runs here.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        is_cached: bool = False,
        before_first: Callable[[], None] = lambda: None,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._before_first = before_first
        self._is_cached = is_cached
        on = ProbedOn.of(device, dtype, Path(__file__)) if is_cached else None
        self._cache = ProbeCache(on)
        self._answers: dict[str, ProbeBits | Exception] = {}
        self._has_run = False
        self._cuda_prober: Prober | None = None

    def resolve(self, pair: QuantPair, granularity: Granularity) -> EffectiveConfig:
        """Return the effective config, reading a user's preset from the installed ModelOpt.

        Raises:
            UsageError: the preset does not exist, or its dtypes are not the pair's.
        """
        config = resolve(pair, granularity, load_preset(pair) if pair.from_preset else None)
        return replace(config, is_modelopt_preset=is_installed_preset(config))

    def support(self, config: EffectiveConfig) -> Support:
        """Return the status of ``config`` on this device."""
        if config.no_effect is not None:
            return Support(status=Status.NO_EFFECT, reason=config.no_effect)
        support = self._probed(config)
        if config.lost_format is None or support.status is Status.UNSUPPORTED:
            return support
        return Support(status=Status.UNSUPPORTED, reason=config.lost_format)

    def _probed(self, config: EffectiveConfig) -> Support:
        answer = self._quantized(config)
        if isinstance(answer, Exception):
            return self._refusal(config, answer)
        reason = self._ignored(config, answer)
        return SUPPORTED if reason is None else Support(status=Status.NO_EFFECT, reason=reason)

    def check_config(self, config: EffectiveConfig) -> None:
        """Have ModelOpt's ``QuantizeConfig`` validate the config.

        Raises:
            UsageError: it refuses, in its own words.
        """
        try:
            validate_config(config.modelopt())
        except ValueError as error:
            raise UsageError(
                f"ModelOpt refuses {config.pair.name} with {config.granularity.name}: {error}"
            ) from error

    def _quantized(self, config: EffectiveConfig) -> ProbeBits | Exception:
        """Return the bits of both tensors, from its quantizers alone where they are independent."""
        bits: dict[str, str] = {}
        for part in _parts(config):
            answer = self._answer(part)
            if isinstance(answer, Exception):
                return answer
            bits |= answer
        return bits

    def _answer(self, part: ProbedPart) -> ProbeBits | Exception:
        if part.key not in self._answers:
            self._answers[part.key] = self._cache.get(part.key) or self._run(part)
        return self._answers[part.key]

    def _run(self, part: ProbedPart) -> ProbeBits | Exception:
        if not self._has_run:
            self._before_first()
            self._has_run = True
        try:
            quantized = quantize_probe(part.config, self._device, self._dtype)
        except Exception as error:  # whatever ModelOpt raises is the answer
            return error
        bits: ProbeBits = {tensor: digest_of(getattr(quantized, tensor)) for tensor in part.tensors}
        self._cache.add(part.key, bits)
        return bits

    @cached_property
    def _unquantized(self) -> ProbeBits:
        tensors = probe_tensors(self._device, self._dtype)
        return {"weight": digest_of(tensors.weight), "input": digest_of(tensors.input)}

    def _refusal(self, config: EffectiveConfig, error: Exception) -> Support:
        if self._device.type == "cuda":
            return Support(status=Status.UNSUPPORTED, reason=in_words(error))
        if torch.cuda.is_available():
            on_cuda = self._on_cuda().support(config)
            if not on_cuda.is_supported:
                return on_cuda
            return Support(status=Status.NEEDS_CUDA, reason=in_words(error))
        for each in (error, *self._errors_of_each_quantizer(config)):
            if isinstance(each, _ARGUMENT_ERRORS):
                return Support(status=Status.UNSUPPORTED, reason=in_words(each))
        return Support(status=Status.NEEDS_CUDA, reason=in_words(error))

    def _errors_of_each_quantizer(self, config: EffectiveConfig) -> Iterator[Exception]:
        """Run each quantizer alone.

        With both, the first error may only be the missing GPU and hide that the other quantizer
        refuses its arguments on every device.
        """
        for part in _halves(config):
            answer = self._answer(part)
            if isinstance(answer, Exception):
                yield answer

    def _on_cuda(self) -> Prober:
        if self._cuda_prober is None:
            cuda = torch.device("cuda")
            self._cuda_prober = Prober(cuda, torch.bfloat16, is_cached=self._is_cached)
        return self._cuda_prober

    def _ignored(self, config: EffectiveConfig, quantized: ProbeBits) -> str | None:
        """Compare with the unquantized probe and with the default overlay.

        An attribute that differs from the default overlay's without changing a bit is ignored.
        """
        default = self.resolve(config.pair, DEFAULT)
        answer = self._quantized(default) if default.digest != config.digest else None
        before = None if isinstance(answer, Exception) else answer
        compared: tuple[tuple[QuantizedTensor, str, QuantizerAttributes | None, bool], ...] = (
            ("weight", WEIGHT_QUANTIZER, config.weight, config.weight != default.weight),
            ("input", INPUT_QUANTIZER, config.input, config.input != default.input),
        )
        for tensor, pattern, attributes, is_changed in compared:
            if attributes is None:
                continue
            if quantized[tensor] == self._unquantized[tensor]:
                return f"{pattern} returns its input unchanged"
            if is_changed and before and quantized[tensor] == before.get(tensor):
                return (
                    f"ModelOpt accepts {_override(config.granularity, pattern)} and ignores it: "
                    f"the quantized {tensor} bits are those of the default overlay"
                )
        return None


def _parts(config: EffectiveConfig) -> tuple[ProbedPart, ...]:
    """Return what has to run for a config.

    Composed configs have two independent quantizers. A preset may have entries that name other
    quantizers, and an algorithm that calibrates both together.
    """
    if not config.pair.from_preset:
        return _halves(config)
    return (ProbedPart(config=config, tensors=("weight", "input"), key=config.digest),)


def _halves(config: EffectiveConfig) -> tuple[ProbedPart, ...]:
    """Return each quantizer of a config alone; the input's first, which runs first in ModelOpt."""
    halves: tuple[tuple[QuantizedTensor, str, QuantizerAttributes | None], ...] = (
        ("input", WEIGHT_QUANTIZER, config.input),
        ("weight", INPUT_QUANTIZER, config.weight),
    )
    return tuple(
        ProbedPart(
            config=config.without(other),
            tensors=(tensor,),
            key=_key(tensor, attributes, config),
        )
        for tensor, other, attributes in halves
        if attributes is not None
    )


def _key(tensor: str, attributes: QuantizerAttributes, config: EffectiveConfig) -> str:
    described = canonical([tensor, attributes.modelopt(), config.algorithm])
    preset = config.digest if config.pair.from_preset else ""
    return hashlib.sha256(json.dumps([described, preset]).encode()).hexdigest()


def digest_of(values: torch.Tensor) -> str:
    """Return the sha256 of a tensor's bits."""
    stored = values.detach().contiguous().view(torch.uint8).cpu()
    return hashlib.sha256(stored.numpy().tobytes()).hexdigest()


def quantize_probe(
    config: EffectiveConfig, device: torch.device, dtype: torch.dtype
) -> ProbeTensors:
    """Quantize and calibrate one seeded linear with ModelOpt; return its fake-quantized tensors.

    Raises whatever ModelOpt raises.
    """
    import modelopt.torch.quantization as mtq

    tensors = probe_tensors(device, dtype)
    linear = nn.Linear(IN_FEATURES, OUT_FEATURES, bias=False, device=device, dtype=dtype)
    linear.weight.data.copy_(tensors.weight)
    model = nn.Sequential(linear)
    with quiet(), torch.no_grad():
        mtq.quantize(model, config.modelopt(), forward_loop=lambda m: m(tensors.input))
        model(tensors.input)
        return ProbeTensors(
            weight=model[0].weight_quantizer(tensors.weight),
            input=model[0].input_quantizer(tensors.input),
        )


def probe_tensors(device: torch.device, dtype: torch.dtype) -> ProbeTensors:
    """Return seeded values whose scale differs along every axis.

    So each granularity gives bits of its own.
    """
    generator = torch.Generator().manual_seed(0)

    def spread(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator)
        for axis in range(len(shape)):
            sizes = [shape[axis] if i == axis else 1 for i in range(len(shape))]
            values = values * torch.exp(torch.randn(*sizes, generator=generator))
        return values.to(device, dtype)

    return ProbeTensors(
        weight=spread(OUT_FEATURES, IN_FEATURES), input=spread(2, TOKENS, IN_FEATURES)
    )


def _override(granularity: Granularity, pattern: str) -> str:
    override = granularity.overrides.get(pattern, {})
    return ", ".join(f"{key} {_plain(value)}" for key, value in override.items()) or pattern


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
