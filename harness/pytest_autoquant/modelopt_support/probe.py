"""Find out what ModelOpt really does with a config, by running it on one small linear.

Nothing here is a table of known limits, and no message text is read: ModelOpt's quantizers run on
the target device, and what they return or raise is the answer. So it stays true when ModelOpt
changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import EffectiveConfig, resolve
from pytest_autoquant.formats.granularity import DEFAULT, Granularity
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER, QuantPair
from pytest_autoquant.formats.quantizer import QuantizedTensor, QuantizerAttributes
from pytest_autoquant.modelopt_support.presets import is_installed_preset, load_preset
from pytest_autoquant.modelopt_support.private_api import validate_config
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


class Prober:
    """Answers support questions for one device, each distinct config once."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._answers: dict[str, ProbeTensors | Exception] = {}
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

    def _quantized(self, config: EffectiveConfig) -> ProbeTensors | Exception:
        if config.digest not in self._answers:
            try:
                self._answers[config.digest] = quantize_probe(config, self._device, self._dtype)
            except Exception as error:  # whatever ModelOpt raises is the answer
                self._answers[config.digest] = error
        return self._answers[config.digest]

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
        for pattern in (WEIGHT_QUANTIZER, INPUT_QUANTIZER):
            answer = self._quantized(config.without(pattern))
            if isinstance(answer, Exception):
                yield answer

    def _on_cuda(self) -> Prober:
        if self._cuda_prober is None:
            self._cuda_prober = Prober(torch.device("cuda"), torch.bfloat16)
        return self._cuda_prober

    def _ignored(self, config: EffectiveConfig, quantized: ProbeTensors) -> str | None:
        """Compare with the unquantized probe and with the default overlay.

        An attribute that differs from the default overlay's without changing a bit is ignored.
        """
        default = self.resolve(config.pair, DEFAULT)
        answer = self._quantized(default) if default.digest != config.digest else None
        before = answer if isinstance(answer, ProbeTensors) else None
        unquantized = probe_tensors(self._device, self._dtype)
        compared: tuple[tuple[QuantizedTensor, str, QuantizerAttributes | None, bool], ...] = (
            ("weight", WEIGHT_QUANTIZER, config.weight, config.weight != default.weight),
            ("input", INPUT_QUANTIZER, config.input, config.input != default.input),
        )
        for tensor, pattern, attributes, is_changed in compared:
            if attributes is None:
                continue
            values = getattr(quantized, tensor)
            if torch.equal(values, getattr(unquantized, tensor)):
                return f"{pattern} returns its input unchanged"
            if is_changed and before and torch.equal(values, getattr(before, tensor)):
                return (
                    f"ModelOpt accepts {_override(config.granularity, pattern)} and ignores it: "
                    f"the quantized {tensor} bits are those of the default overlay"
                )
        return None


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
