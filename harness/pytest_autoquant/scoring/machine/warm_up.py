"""The first work on a GPU, done while the model loads: libraries start, kernels are compiled."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import torch
from torch.nn import functional

from pytest_autoquant.scoring.replay.score_kernel import LinearScorer, prepare_kernel

_HEADS, _HEAD_WIDTH, _CAPTIONS, _TOKENS = 2, 64, 2, 8


@contextmanager
def warming_up(device: torch.device, dtype: torch.dtype, widths: Collection[int]) -> Iterator[None]:
    """Do the first work on a GPU beside the block; nothing on a CPU.

    Args:
        widths: outputs of the linears that will be scored; the kernel is compiled for each block
            size that they need.
    """
    if device.type != "cuda":
        yield
        return
    with suppress(ImportError):  # without Triton the measurement says so
        prepare_kernel()  # here, because the block may import too
    thread = Thread(target=_try_first_work, args=(device, dtype, widths), name="warm-up")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _try_first_work(device: torch.device, dtype: torch.dtype, widths: Collection[int]) -> None:
    """Forget what fails: the measurement does the same work, and says what is wrong."""
    with suppress(Exception), torch.cuda.device(device):
        first_work(device, dtype, widths)
        torch.cuda.synchronize(device)


def first_work(
    device: torch.device, dtype: torch.dtype, widths: Collection[int]
) -> tuple[torch.Tensor, ...]:
    """Run a linear, attention, a loss and a backward pass on one small batch, and score linears.

    Returns:
        by width, the scores of one version, ``(1, captions)``.
    """
    width, tokens = _HEADS * _HEAD_WIDTH, _CAPTIONS * _TOKENS
    x = torch.ones(_CAPTIONS, _TOKENS, width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.ones(width, width, device=device, dtype=dtype)
    heads = functional.linear(x, weight).unflatten(-1, (_HEADS, _HEAD_WIDTH)).transpose(1, 2)
    attended = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    targets = torch.zeros(tokens, dtype=torch.long, device=device)
    logits = attended.transpose(1, 2).reshape(tokens, width).float()
    functional.cross_entropy(logits, targets, reduction="sum").backward()
    inputs = x.detach().flatten(0, 1)
    return tuple(_scores(inputs, each) for each in sorted(set(widths)))


def _scores(x: torch.Tensor, width: int) -> torch.Tensor:
    """Score a linear of ones against one of zeros, with gradients of one."""
    weight = torch.ones(width, x.shape[-1], device=x.device, dtype=x.dtype)
    plain = torch.zeros(len(x), width, device=x.device, dtype=x.dtype)
    lengths = torch.full((_CAPTIONS,), _TOKENS, device=x.device)
    scorer = LinearScorer(plain, torch.ones_like(plain), None, versions=1, caption_lengths=lengths)
    scorer.add(0, x, weight)
    return scorer.per_caption()
