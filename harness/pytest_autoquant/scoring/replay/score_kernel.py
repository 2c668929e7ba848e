"""Reduces a linear's output change to its scores: sums of ``clamp(gradient x change)^2``.

The formula is that of ``_get_auto_quantize_score`` in ModelOpt 0.47.0
(``modelopt/torch/quantization/algorithms.py``). Each tensor is read once and no temporary of the
output's size is kept. Each token is reduced first, then each caption, in a fixed order, so equal
inputs give equal scores. On CUDA a Triton kernel reduces the tokens; on a CPU they are multiplied
and reduced in chunks that fit the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

#: Largest magnitude of a product of gradient and change, as in ModelOpt.
CLAMP = 1e10

#: Most elements of a token that one program of the Triton kernel reduces.
_CUDA_BLOCK = 4096

#: Elements of the output that a CPU multiplies at a time: 512 KiB in fp32.
_CPU_CHUNK_ELEMENTS = 1 << 17


class OutputScorer:
    """Scores many quantized versions of one output against the unquantized one.

    Args:
        plain: unquantized output, ``(tokens, out_features)``.
        gradient: of the loss with respect to that output, ``(tokens, out_features)``.
        versions: number of versions.
        caption_lengths: ``(captions,)``: number of tokens of each caption, in the tokens' order.
    """

    def __init__(
        self,
        plain: torch.Tensor,
        gradient: torch.Tensor,
        *,
        versions: int,
        caption_lengths: torch.Tensor,
    ) -> None:
        tokens, width = plain.shape
        rows = tokens if plain.is_cuda else max(1, _CPU_CHUNK_ELEMENTS // width)
        self._plain, self._gradient = plain, gradient
        self._parts = [slice(start, start + rows) for start in range(0, tokens, rows)]
        self._caption_lengths = caption_lengths
        blocks = -(-width // _CUDA_BLOCK) if plain.is_cuda else 1
        dtype = torch.float32 if plain.is_cuda else torch.float64
        self._partial = torch.zeros((versions, tokens, blocks), dtype=dtype, device=plain.device)

    def add_output(self, version: int, output: torch.Tensor) -> None:
        """Score one version; a version that is never added scores 0.

        Args:
            output: quantized output, ``(tokens, out_features)``; overwritten on a CPU.
        """
        for part in self._parts:
            self._reduce(version, part, output[part])

    def per_caption(self) -> torch.Tensor:
        """Return the scores, ``(versions, captions)`` in float64, on the device."""
        tokens = self._partial.sum(dim=2, dtype=torch.float64).T.contiguous()
        return torch.segment_reduce(
            tokens, "sum", lengths=self._caption_lengths, axis=0, unsafe=True
        ).T

    def _reduce(self, version: int, part: slice, output: torch.Tensor) -> None:
        reduce = _reduce_cuda if output.is_cuda else _reduce_cpu
        reduce(output, self._plain[part], self._gradient[part], self._partial[version, part])


class LinearScorer(OutputScorer):
    """Scores many quantized versions of one linear; see ``OutputScorer``.

    Args:
        bias: the linear's bias, ``(out_features,)`` or None.
    """

    def __init__(
        self,
        plain: torch.Tensor,
        gradient: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        versions: int,
        caption_lengths: torch.Tensor,
    ) -> None:
        super().__init__(plain, gradient, versions=versions, caption_lengths=caption_lengths)
        self._bias = bias

    def add(self, version: int, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Score one version; a version that is never added scores 0.

        Args:
            x: quantized input, ``(tokens, in_features)``.
            weight: quantized weight, ``(out_features, in_features)``.
        """
        for part in self._parts:
            self._reduce(version, part, functional.linear(x[part], weight, self._bias))


def _reduce_cpu(
    output: torch.Tensor, plain: torch.Tensor, gradient: torch.Tensor, partial: torch.Tensor
) -> None:
    """Write the sum of each token, to ``partial`` of shape ``(tokens, 1)``."""
    change = output.sub_(plain)
    product = change.float().mul_(gradient.float())
    partial[:, 0] = product.clamp_(-CLAMP, CLAMP).square_().sum(dim=1)


def _reduce_cuda(
    output: torch.Tensor, plain: torch.Tensor, gradient: torch.Tensor, partial: torch.Tensor
) -> None:
    """Write the sum of each block of each token, to ``partial`` of shape ``(tokens, blocks)``."""
    tokens, width = output.shape
    block = min(_CUDA_BLOCK, max(16, 1 << (width - 1).bit_length()))
    grid = (tokens, partial.shape[1])
    _kernel()[grid](output, plain, gradient, partial, width, CLAMP, BLOCK=block)


def prepare_kernel() -> None:
    """Import Triton and declare the kernel, which is compiled where it first runs.

    Raises:
        ImportError: Triton is not installed.
    """
    _kernel()


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """Build the kernel on first use: only CUDA builds of torch come with Triton."""
    import triton
    from triton import language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def reduce_kernel(output, plain, gradient, partial, width, clamp, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
        token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        columns = block * BLOCK + tl.arange(0, BLOCK)
        inside = columns < width
        offsets = token * width + columns
        quantized = tl.load(output + offsets, mask=inside, other=0.0)
        change = quantized.to(tl.float32) - tl.load(plain + offsets, mask=inside, other=0.0).to(
            tl.float32
        )
        rounded = change.to(quantized.dtype).to(tl.float32)
        product = rounded * tl.load(gradient + offsets, mask=inside, other=0.0).to(tl.float32)
        clamped = tl.minimum(tl.maximum(product, -clamp), clamp)
        clamped = tl.where(product != product, product, clamped)
        tl.store(partial + token * tl.num_programs(1) + block, tl.sum(clamped * clamped))

    return reduce_kernel
