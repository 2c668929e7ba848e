"""The next-token loss, whose gradients weight the scores."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def next_token_logits(module: Any, batch: torch.Tensor) -> torch.Tensor:
    """Return the logits of every prediction, ``(captions, tokens - 1, vocabulary)``.

    The last position has no next token. It is left out, so that ``kl_div`` also averages over
    predictions only.

    Args:
        batch: token ids, ``(captions, tokens)``.
    """
    logits: torch.Tensor = module(input_ids=batch, use_cache=False).logits
    return logits[:, :-1]


def next_token_loss(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Return the sum of next-token cross-entropy over all predictions of the batch, in nats.

    A sum and not a mean, so that the gradient of one token does not depend on how captions are
    batched.

    Args:
        logits: in any floating dtype, computed in fp32; ``(captions, tokens - 1, vocabulary)``.
        batch: token ids, ``(captions, tokens)``.
    """
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
    )
