"""The score's reduction: ``clamp(gradient x (quantized - plain))^2``, summed over a whole output.

Each tensor is read once and nothing of full size is allocated. Sums are fp32 over blocks in a fixed
order, so equal inputs give equal scores. On CUDA one Triton kernel does it; on a CPU the rows are
multiplied and reduced in chunks that stay in the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

CLAMP = 1e10
_CUDA_BLOCK = 4096
_CPU_CHUNK_ELEMENTS = 1 << 17


def linear_score(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    plain: torch.Tensor,
    gradient: torch.Tensor,
    rows: int | None = None,
) -> torch.Tensor:
    """Return the score of one quantized linear as a float64 scalar on its device.

    Args:
        x: quantized input, ``(tokens, in_features)``.
        weight: quantized weight, ``(out_features, in_features)``.
        plain: the unquantized output, ``(tokens, out_features)``.
        gradient: of the loss with respect to that output.
        rows: tokens multiplied at a time; None for all on CUDA, and on a CPU as many as stay in the
            cache.
    """
    reduce = _reduce_cuda if x.is_cuda else _reduce_cpu
    if rows is None:
        rows = len(x) if x.is_cuda else max(1, _CPU_CHUNK_ELEMENTS // len(weight))
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        output = functional.linear(x[part], weight, bias)
        total += reduce(output, plain[part], gradient[part])
    return total


def _reduce_cpu(output: torch.Tensor, plain: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    change = output.sub_(plain)
    product = change.float().mul_(gradient.float())
    return product.clamp_(-CLAMP, CLAMP).square_().sum()


def _reduce_cuda(output: torch.Tensor, plain: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    count = output.numel()
    blocks = -(-count // _CUDA_BLOCK)
    partial = torch.empty(blocks, dtype=torch.float32, device=output.device)
    _kernel()[(blocks,)](output, plain, gradient, partial, count, CLAMP, BLOCK=_CUDA_BLOCK)
    return partial.sum(dtype=torch.float64)


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """Build the kernel on first use: Triton is only there with CUDA builds of torch."""
    import triton
    from triton import language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def reduce_kernel(output, plain, gradient, partial, count, clamp, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
        offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < count
        quantized = tl.load(output + offsets, mask=inside, other=0.0)
        change = quantized.to(tl.float32) - tl.load(plain + offsets, mask=inside, other=0.0).to(
            tl.float32
        )
        rounded = change.to(quantized.dtype).to(tl.float32)
        product = rounded * tl.load(gradient + offsets, mask=inside, other=0.0).to(tl.float32)
        clamped = tl.minimum(tl.maximum(product, -clamp), clamp)
        tl.store(partial + tl.program_id(0), tl.sum(clamped * clamped))

    return reduce_kernel
