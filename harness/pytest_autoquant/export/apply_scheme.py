"""A model with a scheme's decisions applied by ModelOpt, and how far it then is from itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.modelopt_support.private_api import named_quantizers
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.loading import LoadedModel, preserved
from pytest_autoquant.models.next_token import next_token_logits

_EVERYTHING_OFF = {"quantizer_name": "*", "enable": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A layer group that is quantized: its linears and what they become."""

    modules: tuple[str, ...]
    config: EffectiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A quantized model against itself unquantized, over next-token predictions.

    Attributes:
        kl: mean KL divergence of the quantized from the unquantized prediction, in nats per token.
        loss: mean cross-entropy of the quantized model in nats per token; ``loss_before`` of the
            unquantized one. Their exponentials are perplexities.
        agreement: share of the tokens whose most likely next token is the same.
    """

    kl: float
    loss: float
    loss_before: float
    agreement: float
    num_tokens: int


@contextmanager
def applied(
    model: LoadedModel, decisions: Sequence[Decision], batches: Sequence[Batch]
) -> Iterator[None]:
    """Quantize groups with ModelOpt, calibrated on ``batches``; put the model back afterwards.

    Linears of a group share a scale per tensor, as runtimes fuse them and ModelOpt's export widens
    their ranges to the largest. Groups that no decision names stay as they are.

    Raises:
        MeasurementError: a config asks for more than ``max`` calibration, which would change
            weights.
    """

    def forward_loop(module: Any) -> None:
        with torch.no_grad():
            for batch in batches:
                next_token_logits(module, model.tensor(batch))

    with preserved(model.module), quiet():
        if decisions:
            import modelopt.torch.quantization as mtq

            mtq.quantize(model.module, explicit_config(decisions), forward_loop)
            for decision in decisions:
                _share_range(model, decision)
        yield


def shared_range(model: LoadedModel, decision: Decision) -> torch.Tensor | None:
    """Return the largest weight magnitude of a group whose linears have one scale each, else None.

    The shape is that of ModelOpt's ``amax`` per tensor: ``()``.
    """
    if decision.config.scale_shared_by("weight") != "tensor":
        return None
    weights = (model.module.get_submodule(name).weight for name in decision.modules)
    return torch.stack([weight.detach().abs().amax().float() for weight in weights]).amax()


def _share_range(model: LoadedModel, decision: Decision) -> None:
    largest = shared_range(model, decision)
    if largest is not None:
        for name in decision.modules:
            model.module.get_submodule(name).weight_quantizer.amax = largest


def explicit_config(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Return a ModelOpt config that names every quantizer and leaves nothing to patterns.

    Raises:
        MeasurementError: a config with another calibration than ``max``.
    """
    entries: list[dict[str, Any]] = [dict(_EVERYTHING_OFF)]
    for decision in decisions:
        config = decision.config
        if config.algorithm not in (None, "max"):
            raise MeasurementError(
                f"{config.pair.name} calibrates by {config.algorithm}; a scheme takes pairs that "
                "calibrate by max"
            )
        for pattern, attributes in config.quantizers:
            if attributes is not None:
                entries += [
                    {"quantizer_name": f"{name}.{pattern[1:]}", "cfg": attributes.modelopt()}
                    for name in decision.modules
                ]
    return {"quant_cfg": entries, "algorithm": "max"}


def damage(model: LoadedModel, batches: Sequence[Batch]) -> Damage:
    """Compare an applied model with itself, its quantizers switched off, batch by batch."""
    kl = loss = before = agreeing = 0.0
    with torch.no_grad():
        for batch in batches:
            tokens = model.tensor(batch)
            with _bypassed(model.module):
                plain = _log_probabilities(model.module, tokens)
            quantized = _log_probabilities(model.module, tokens)
            target = tokens[:, 1:]
            kl += functional.kl_div(quantized, plain, reduction="sum", log_target=True).item()
            loss -= quantized.gather(-1, target[..., None]).sum().item()
            before -= plain.gather(-1, target[..., None]).sum().item()
            agreeing += (quantized.argmax(-1) == plain.argmax(-1)).sum().item()
    count = sum(batch.num_predicted for batch in batches)
    return Damage(
        kl=kl / count,
        loss=loss / count,
        loss_before=before / count,
        agreement=agreeing / count,
        num_tokens=count,
    )


def _log_probabilities(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return ``(captions, tokens - 1, vocabulary)`` log-probabilities of the next token."""
    return torch.log_softmax(next_token_logits(module, tokens).double(), dim=-1)


@contextmanager
def _bypassed(module: Any) -> Iterator[None]:
    """Switch every quantizer off that is on, for a while."""
    quantizers = [each for _, each in named_quantizers(module) if each.is_enabled]
    for quantizer in quantizers:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enable()
