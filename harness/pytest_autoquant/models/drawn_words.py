"""Next words drawn from the model's own predictions, the same however captions are batched."""

from __future__ import annotations

import torch

from pytest_autoquant.calibration.batches import Batch, caption_digest


def drawn_words(logits: torch.Tensor, batch: Batch, draws: int) -> torch.Tensor:
    """Draw every next token of a batch several times; the captions' own words stay the context.

    A caption's draws depend on its tokens and on the predictions alone. They are stratified: the
    draws of one prediction take evenly spaced quantiles, from a random one on.

    Args:
        logits: of every prediction, ``(captions, tokens - 1, vocabulary)``.

    Returns:
        token ids, ``(draws, captions, tokens - 1)``.
    """
    total = logits.detach().float().softmax(-1).cumsum(-1)
    first = torch.stack([_uniform(row) for row in batch.rows]).to(total.device)
    step = torch.arange(draws, device=total.device) / draws
    quantiles = (first + step[:, None, None]).remainder(1.0)
    # The last of the cumulated probabilities is 1 but for rounding.
    wanted = (quantiles.movedim(0, -1) * total[..., -1:]).contiguous()
    words = torch.searchsorted(total, wanted, right=True)
    return words.clamp_(max=total.shape[-1] - 1).movedim(-1, 0)


def _uniform(row: tuple[int, ...]) -> torch.Tensor:
    """Return one number in [0, 1) per prediction of a caption, drawn by its token ids."""
    generator = torch.Generator().manual_seed(int(caption_digest(row), 16))
    return torch.rand(len(row) - 1, generator=generator)
