"""Gradients of the logits, drawn from the Fisher information of the model's own predictions."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pytest_autoquant.calibration.batches import Batch, caption_digest

#: Random bits in one number of a generator.
_BITS = 63


def drawn_gradients(logits: torch.Tensor, batch: Batch, draws: int) -> Iterator[torch.Tensor]:
    """Yield gradients with respect to the logits of a batch, several times.

    With p the predicted probabilities and e a sign for every word, heads or tails, a gradient is
    ``sqrt(p) e - p (sqrt(p) e).sum()``. It averages to 0 and its outer product to
    ``diag(p) - p p^T``, the Fisher information of the prediction, as that of the loss of a word
    drawn from p does. The latter is far from its mean for a rare word; here every word takes part
    in every draw, so the square of a change has less noise.

    A caption's signs depend on its tokens alone: not on the batch, the device, or how many draws
    follow.

    Args:
        logits: of every prediction, ``(captions, tokens - 1, vocabulary)``.

    Yields:
        as ``logits``, and of its dtype.
    """
    root = logits.detach().float().softmax(-1).sqrt_()
    seeds = [int(caption_digest(row), 16) for row in batch.rows]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(draws):
        drawn = torch.stack([_signs(g, logits) for g in generators]).mul_(root)
        yield drawn.addcmul_(root.square(), drawn.sum(-1, keepdim=True), value=-1).to(logits.dtype)


def _signs(generator: torch.Generator, logits: torch.Tensor) -> torch.Tensor:
    """Return -1 or 1 for every prediction and word of one caption, in fp32."""
    _, predictions, words = logits.shape
    numbers = torch.empty((predictions, -(-words // _BITS), 1), dtype=torch.int64)
    numbers = numbers.random_(generator=generator).to(logits.device)
    bits = numbers >> torch.arange(_BITS, device=logits.device) & 1
    return bits.flatten(1)[:, :words].float().mul_(2).sub_(1)
