"""Fused experts, replayed: the model's own forward of one layer's experts on recorded routing.

ModelOpt has a weight quantizer per expert and matrix, and one input quantizer per matrix that all
experts share (``_QuantFusedExperts`` in ``modelopt/torch/quantization/plugins/huggingface.py``,
0.47.0). It scores a layer's experts at their common output, which is that of the mixture block.
Routers are not quantized, so the routing of the unquantized model holds for every config.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from pytest_autoquant.models.layers import expert_matrices
from pytest_autoquant.models.offload.resident import resident
from pytest_autoquant.scoring.replay.experts.products import (
    ExpertInput,
    ExpertMatrices,
    experts_output,
    unchanged,
)
from pytest_autoquant.scoring.replay.score_kernel import OutputScorer
from pytest_autoquant.scoring.replay.sweep import (
    Attributes,
    SweepPlan,
    SweepResult,
    score_products,
)
from pytest_autoquant.scoring.replay.token_slices import SliceRouting, TokenSlice


def quantized_experts(plan: SweepPlan, module: Any, attributes: Attributes) -> ExpertMatrices:
    """Return the matrices of all experts as one of a plan's quantizers gives them."""
    matrices = expert_matrices(module)
    if attributes is None:
        return matrices
    quantized = {name: torch.empty_like(matrix) for name, matrix in matrices.items()}
    for name, matrix in matrices.items():
        for expert, weight in enumerate(matrix):
            quantized[name][expert] = plan.quantized_weight(attributes, weight)
    return quantized


def quantized_input(
    plan: SweepPlan,
    attributes: Attributes,
    x: torch.Tensor,
    amax: torch.Tensor,
    hidden_amax: torch.Tensor,
) -> ExpertInput:
    """Return what experts read as one of a plan's quantizers gives it.

    Scales do not depend on which tokens share an expert, so all tokens are quantized at once before
    the first matrices read them.

    Args:
        x: ``(tokens, hidden)``.
        amax: largest |X| per channel, ``(hidden,)``.
        hidden_amax: largest magnitude per channel that the second matrices read, over all
            experts, ``(intermediate,)``.
    """
    quantizer = plan.inputs[attributes]
    if quantizer is None:
        return ExpertInput(x=x, on_hidden=unchanged)
    first, second = quantizer.of_rows("first", amax), quantizer.of_rows("second", hidden_amax)
    return ExpertInput(x=first(x), on_hidden=second)


def sweep_experts(
    plan: SweepPlan, token_slice: TokenSlice, module: Any, result: SweepResult
) -> None:
    """Score every config on the experts of one layer; see ``sweep.sweep_slice``."""
    (name,) = token_slice.gradients
    read = cache(partial(_quantized_input, plan, token_slice))
    with resident(module.get_submodule(name)) as experts:
        scorer = _ExpertsScorer(experts, token_slice, len(plan.configs))
        for attributes, products in plan.products.items():
            weights = partial(quantized_experts, plan, experts, attributes)
            score_products(scorer, products, read, weights, result.failures)
        result.add(name, scorer.per_caption())


class _ExpertsScorer:
    """Scores quantized versions of one layer's experts; used like ``score_kernel.LinearScorer``."""

    def __init__(self, module: Any, token_slice: TokenSlice, versions: int) -> None:
        (gradient,) = token_slice.gradients.values()
        self._module, self._routing = module, _routing(token_slice)
        plain = ExpertInput(x=token_slice.x, on_hidden=unchanged)
        self._scorer = OutputScorer(
            self._output(expert_matrices(module), plain),
            gradient,
            versions=versions,
            caption_lengths=token_slice.caption_lengths,
        )

    def add(self, version: int, x: ExpertInput, weight: ExpertMatrices) -> None:
        """Score one version; a version that is never added scores 0."""
        self._scorer.add_output(version, self._output(weight, x))

    def per_caption(self) -> torch.Tensor:
        """Return the scores; see ``score_kernel.OutputScorer``."""
        return self._scorer.per_caption()

    def _output(self, matrices: ExpertMatrices, read: ExpertInput) -> torch.Tensor:
        routing = self._routing
        parts = [
            experts_output(
                self._module,
                matrices,
                read.rows(rows),
                routing.experts[rows],
                routing.weights[rows],
            )
            for rows in routing.parts
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _quantized_input(
    plan: SweepPlan, token_slice: TokenSlice, attributes: Attributes
) -> ExpertInput:
    hidden_amax = _routing(token_slice).hidden_amax
    return quantized_input(plan, attributes, token_slice.x, token_slice.amax, hidden_amax)


def _routing(token_slice: TokenSlice) -> SliceRouting:
    assert token_slice.routing is not None
    return token_slice.routing
