"""The ``fisher`` score: how far a quantized output changes the model's predictions.

To second order, twice the KL divergence is the square of the logits' change in the Fisher
information F of the predictions (Martens, *New Insights and Perspectives on the Natural Gradient
Method*, JMLR 2020). For logit gradients drawn such that their outer product averages to F (see
``models.drawn_gradients``) it is the mean of (gradient x change)^2: of the squared change of a loss
that has this gradient. A backward pass brings the gradient to a linear's output, where its product
with the output change is summed over channels and tokens. ModelOpt's ``gradient`` squares each
channel of each token for itself and takes the loss of the captions' words.

The gradients of one prediction are drawn independently of another's, so squaring each token's
product for itself leaves out only what a change of one token does to the predictions of later ones
together with another token's change. That is small but for q/k/v: attention adds up their changes
over the tokens of a caption, or takes the difference (a change that all keys share changes
nothing). Squared per caption, the members together, nothing is left out, but there is one number
per caption and draw: with n of them the noise of a group's score is about the root of 2 / n. So
q/k/v have one draw more, and their score is a mean of both squares that gives those per caption
more weight the more of them there are.

With weight W, its change dW, input X and its change dX, the product of gradient G and output change
is (G dW) (X + dX) + (G W) dX, summed over input channels: one matrix product per distinct weight
quantizer, and none per configuration.
"""

from __future__ import annotations

from typing import Any

import torch

from pytest_autoquant.scoring.replay.tape import is_attention_input
from pytest_autoquant.scoring.replay.token_slices import TokenSlice

#: Draws for each caption, a backward pass each; a linear is scored of ``tape.kept_draws``.
DRAWS = 3

#: Captions times draws at which squares per caption weigh as much as squares per token for q/k/v:
#: the noise of the former is 13% there.
EVEN_SAMPLES = 128


class LossChangeScorer:
    """Scores many quantized versions of one linear; used like ``score_kernel.LinearScorer``.

    Versions with one weight come one after the other, and an input is one tensor for all of them.

    Args:
        name: of the linear; it decides what is squared.
        linear: the unquantized linear.
        token_slice: with gradients ``(tokens, draws, out_features)``.
        versions: number of versions.
    """

    def __init__(self, name: str, linear: Any, token_slice: TokenSlice, versions: int) -> None:
        self._weight, self._x = linear.weight, token_slice.x
        self._gradient = token_slice.gradients[name]
        self._caption_lengths = token_slice.caption_lengths
        self._pulled_change: tuple[torch.Tensor, torch.Tensor] | None = None
        self._input_parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._joint_weight = _joint_weight(name, token_slice)
        tokens, draws, _ = self._gradient.shape
        self._changes = torch.zeros(
            (versions, tokens, draws), dtype=torch.float64, device=self._x.device
        )

    def add(self, version: int, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Score one version; a version that is never added scores 0.

        Args:
            x: quantized input, ``(tokens, in_features)``.
            weight: quantized weight, ``(out_features, in_features)``.
        """
        if self._pulled_change is None or self._pulled_change[0] is not weight:
            self._pulled_change = weight, self._pulled(weight - self._weight)
        change = _dot(self._pulled_change[1], x).double()
        self._changes[version] = change if x is self._x else change + self._input_part(x)

    def per_caption(self) -> torch.Tensor:
        """Return the scores, ``(versions, captions)`` in float64, on the device.

        For q/k/v ``(versions, captions, 1 + draws)``: the score per token, then the loss changes,
        to be added up over the members of the group and squared; all weighted.
        """
        per_token = self._summed(self._changes.square()).mean(-1)
        if not self._joint_weight:
            return per_token
        changes = self._summed(self._changes)
        scale = (self._joint_weight / changes.shape[-1]) ** 0.5
        weighted = per_token[..., None] * (1 - self._joint_weight)
        return torch.cat([weighted, changes * scale], dim=-1)

    def _input_part(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the change of the input contributes, ``(tokens, draws)``."""
        if id(x) not in self._input_parts:  # the tensor is kept, so that no other takes its id
            part = _dot(self._pulled(self._weight), x - self._x).double()
            self._input_parts[id(x)] = x, part
        return self._input_parts[id(x)][1]

    def _pulled(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to the input, ``(tokens, draws, in_features)``."""
        return (self._gradient.flatten(0, 1) @ weight).unflatten(0, self._gradient.shape[:2])

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum ``(versions, tokens, draws)`` over the tokens of each caption."""
        by_token = values.transpose(0, 1).contiguous()
        lengths = self._caption_lengths
        return torch.segment_reduce(
            by_token, "sum", lengths=lengths, axis=0, unsafe=True
        ).transpose(0, 1)


def _joint_weight(name: str, token_slice: TokenSlice) -> float:
    """Return the weight of the squares per caption in a linear's score."""
    samples = len(token_slice.caption_lengths) * token_slice.gradients[name].shape[1]
    return samples / (samples + EVEN_SAMPLES) if is_attention_input(name) else 0.0


def _dot(pulled: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Multiply ``(tokens, draws, in_features)`` with ``(tokens, in_features)``; sum channels."""
    if x.is_cuda:
        return torch.bmm(pulled, x[:, :, None]).squeeze(-1)
    return (pulled * x[:, None]).sum(-1)  # on a CPU, bmm of such small matrices takes twice as long
