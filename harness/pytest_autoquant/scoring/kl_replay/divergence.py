"""KL divergence of quantized from unquantized predictions.

For logits ``z`` and ``z + d`` and p = softmax(z),
KL(p || softmax(z + d)) = log E_p[exp(d)] - E_p[d].
With x = d - E_p[d] that is log1p(E_p[exp(x) - 1 - x]), whose terms are all positive: small
divergences are not lost in the rounding of large logits, as they are in sums of p (log p - log q).
ModelOpt sums the same divergence over predictions (``_get_kl_div_loss`` in
``modelopt/torch/quantization/algorithms.py``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

#: Words of the vocabulary that one step of the Triton kernel reads, and warps that share them.
_CUDA_BLOCK, _CUDA_WARPS = 2048, 8


class Reference:
    """The unquantized predictions of one batch.

    Args:
        logits: ``(captions, tokens, vocabulary)``.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits.contiguous()
        self._captions, self._tokens, self._vocabulary = logits.shape
        self._log_sum: torch.Tensor | None = None

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's logits."""
        return int(self._logits[0, 0].nbytes)

    def divergences(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the KL divergence by version and caption, summed over predictions, in nats.

        Args:
            logits: ``(versions x captions, tokens, vocabulary)``, version by version.

        Returns:
            ``(versions, captions)`` in float64.
        """
        if logits.is_cuda:
            return self._on_cuda(logits)
        versions = logits.reshape(-1, *self._logits.shape)
        plain = self._logits.float()
        probability = plain.softmax(-1)
        found = [_divergence(version.float(), plain, probability) for version in versions]
        return torch.stack(found).sum(-1, dtype=torch.float64)

    def _on_cuda(self, logits: torch.Tensor) -> torch.Tensor:
        device, logits = logits.device, logits.contiguous()
        plain = self._logits.to(device)
        rows = len(logits) * self._tokens
        divergences = torch.empty(rows, dtype=torch.float32, device=device)
        if self._log_sum is None:  # every group compares with the same predictions
            self._log_sum = plain.float().logsumexp(-1)
        _kernel()[(rows,)](
            logits,
            plain,
            self._log_sum,
            divergences,
            self._captions * self._tokens,
            rows // (self._captions * self._tokens),
            self._vocabulary,
            BLOCK=_CUDA_BLOCK,
            num_warps=_CUDA_WARPS,
        )
        by_token = divergences.view(-1, self._captions, self._tokens)
        return by_token.sum(-1, dtype=torch.float64)


def _divergence(
    logits: torch.Tensor, plain: torch.Tensor, probability: torch.Tensor
) -> torch.Tensor:
    """Return ``(captions, tokens)``; all arguments are ``(captions, tokens, vocabulary)``."""
    change = logits.sub(plain)
    change -= (probability * change).sum(-1, keepdim=True)
    excess = change.expm1().sub_(change).mul_(probability).sum(-1)
    return excess.log1p()


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """Build the kernel on first use: only CUDA builds of torch come with Triton."""
    import triton
    from triton import language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def divergence_kernel(  # type: ignore[no-untyped-def]
        quantized,
        plain,
        log_sum,
        divergences,
        plain_rows,
        versions,
        vocabulary,
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        # The versions of one prediction one after the other: they read the same logits.
        program = tl.program_id(0).to(tl.int64)
        place = program // versions
        row = program % versions * plain_rows + place
        ours = quantized + row * vocabulary
        theirs = plain + place * vocabulary
        log_total = tl.load(log_sum + place)
        first = tl.zeros((BLOCK,), tl.float32)
        mass = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < vocabulary
            z = tl.load(theirs + offsets, mask=inside, other=-float("inf")).to(tl.float32)
            p = tl.exp(z - log_total)
            y = tl.load(ours + offsets, mask=inside, other=0.0).to(tl.float32)
            first += tl.where(inside, p * (y - z), 0.0)
            mass += p
        total = tl.sum(mass)
        mean = tl.sum(first) / total
        excess = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < vocabulary
            z = tl.load(theirs + offsets, mask=inside, other=0.0).to(tl.float32)
            p = tl.exp(z - log_total)
            y = tl.load(ours + offsets, mask=inside, other=0.0).to(tl.float32)
            x = y - z - mean
            # exp(x) - 1 - x, by its series where the difference would cancel.
            series = x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120))))
            term = tl.where(tl.abs(x) < 0.1, series, tl.exp(x) - 1.0 - x)
            excess += tl.where(inside, p * term, 0.0)
        # log1p, likewise by its series where the sum would lose the small term.
        value = tl.sum(excess) / total
        series = value * (1.0 - value * (0.5 - value * (1.0 / 3)))
        tl.store(divergences + row, tl.where(value < 0.01, series, tl.log(1.0 + value)))

    return divergence_kernel
