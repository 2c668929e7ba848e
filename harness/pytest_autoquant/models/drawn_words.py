"""Next words drawn from the model's own predictions, the same however captions are batched."""

from __future__ import annotations

import torch

from pytest_autoquant.calibration.batches import Batch, caption_digest


def drawn_words(logits: torch.Tensor, batch: Batch, draws: int) -> torch.Tensor:
    """Draw every next token of a batch several times; the captions' own words stay the context.

    A caption's draws depend on its tokens and on the predictions alone, and the first ones not on
    how many follow. They come in pairs: the second of a pair takes the quantile half a turn from
    the random one of the first.

    Args:
        logits: of every prediction, ``(captions, tokens - 1, vocabulary)``.

    Returns:
        token ids, ``(draws, captions, tokens - 1)``.
    """
    total = logits.detach().float().softmax(-1).cumsum(-1)
    firsts = torch.stack([_uniform(row, -(-draws // 2)) for row in batch.rows]).to(total.device)
    quantiles = torch.stack([firsts, firsts + 0.5], dim=-1).remainder(1.0).flatten(-2)[..., :draws]
    # The last of the cumulated probabilities is 1 but for rounding.
    wanted = (quantiles * total[..., -1:]).contiguous()
    words = torch.searchsorted(total, wanted, right=True)
    return words.clamp_(max=total.shape[-1] - 1).movedim(-1, 0)


def _uniform(row: tuple[int, ...], count: int) -> torch.Tensor:
    """Return numbers in [0, 1) drawn by a caption's token ids, ``(len(row) - 1, count)``."""
    generator = torch.Generator().manual_seed(int(caption_digest(row), 16))
    return torch.rand(count, len(row) - 1, generator=generator).T
