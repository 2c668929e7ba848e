"""Measure the damage of an applied scheme: the quantized against the unquantized model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from pytest_autoquant.calibration.batches import Batch, caption_digest, captions_digest
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.manifests.records.packed_scores import pack_scores
from pytest_autoquant.manifests.records.scheme_manifest import MeasuredDamage
from pytest_autoquant.manifests.uncertainty import ratio_error
from pytest_autoquant.modelopt_support.private_api import named_quantizers
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.next_token import next_token_logits


def measure_damage(
    model: LoadedModel, captions: CaptionSet, batches: Sequence[Batch]
) -> MeasuredDamage:
    """Compare next-token predictions with quantizers switched on and off, batch by batch.

    KL divergence is that of the quantized from the unquantized prediction, sum over tokens of
    p (log p - log q), in fp64, kept by caption in the order of ``CalibrationData.by_digest``.

    Args:
        captions: the held-out captions that ``batches`` hold.
    """
    by_caption: list[tuple[str, int, float]] = []
    loss = before = agreeing = 0.0
    with torch.no_grad():
        for batch in batches:
            tokens = model.tensor(batch)
            with _bypassed(model.module):
                plain = _log_probabilities(model.module, tokens)
            quantized = _log_probabilities(model.module, tokens)
            target = tokens[:, 1:]
            terms = functional.kl_div(quantized, plain, reduction="none", log_target=True)
            kl = terms.sum((1, 2)).tolist()
            by_caption += [
                (caption_digest(row), len(row) - 1, each)
                for row, each in zip(batch.rows, kl, strict=True)
            ]
            loss -= quantized.gather(-1, target[..., None]).sum().item()
            before -= plain.gather(-1, target[..., None]).sum().item()
            agreeing += (quantized.argmax(-1) == plain.argmax(-1)).sum().item()
    count = sum(batch.num_predicted for batch in batches)
    _, predictions, divergences = zip(*sorted(by_caption, key=lambda each: each[0]), strict=True)
    return MeasuredDamage(
        kl=sum(divergences) / count,
        loss=loss / count,
        loss_before=before / count,
        agreement=agreeing / count,
        num_tokens=count,
        captions=captions.name,
        sha256=captions_digest(captions.lines, ()),
        standard_error=ratio_error(divergences, predictions),
        caption_kl=pack_scores(divergences),
        caption_predictions=predictions,
    )


def _log_probabilities(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return ``(captions, tokens - 1, vocabulary)`` log-probabilities of the next token."""
    return torch.log_softmax(next_token_logits(module, tokens).double(), dim=-1)


@contextmanager
def _bypassed(module: Any) -> Iterator[None]:
    """Switch enabled quantizers off, and on again at the end."""
    quantizers = [each for _, each in named_quantizers(module) if each.is_enabled]
    for quantizer in quantizers:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enable()
