"""The loss that sensitivities are measured with."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def next_token_logits(module: Any, batch: torch.Tensor) -> torch.Tensor:
    """Return the logits of every prediction: ``(captions, tokens - 1, vocabulary)``.

    The last position predicts nothing and is left out, so that ``kl_div`` too is per prediction.
    """
    logits: torch.Tensor = module(input_ids=batch, use_cache=False).logits
    return logits[:, :-1]


def next_token_loss(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Sum of next-token cross-entropy in nats over all predictions of the batch.

    A sum, not a mean: the gradient of one token then does not depend on its batch.
    """
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
    )
