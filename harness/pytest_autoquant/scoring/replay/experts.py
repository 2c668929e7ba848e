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
from pytest_autoquant.scoring.replay.expert_products import (
    ExpertInput,
    OnHidden,
    Weights,
    experts_output,
)
from pytest_autoquant.scoring.replay.score_kernel import OutputScorer
from pytest_autoquant.scoring.replay.sweep import (
    Attributes,
    SweepPlan,
    SweepResult,
    score_products,
)
from pytest_autoquant.scoring.replay.token_slices import TokenSlice


def quantized_experts(plan: SweepPlan, module: Any, attributes: Attributes) -> Weights:
    """Return the matrices of all experts as one of a plan's quantizers gives them."""
    matrices = expert_matrices(module)
    if attributes is None:
        return matrices
    quantized = {name: torch.empty_like(matrix) for name, matrix in matrices.items()}
    for name, matrix in matrices.items():
        for expert, weight in enumerate(matrix):
            quantized[name][expert] = plan.quantized_weight(attributes, weight)
    return quantized


def quantized_hidden(plan: SweepPlan, attributes: Attributes, amax: torch.Tensor) -> OnHidden:
    """Return what quantizes the input of the second matrices.

    Args:
        amax: largest magnitude per channel over all experts, ``(intermediate,)``.
    """
    quantizer = plan.inputs[attributes]
    return _unchanged if quantizer is None else quantizer.of_rows("second", amax)


def quantized_rows(
    plan: SweepPlan, attributes: Attributes, x: torch.Tensor, amax: torch.Tensor
) -> torch.Tensor:
    """Return what the first matrices read, quantized: ``(tokens, hidden)``.

    Scales do not depend on which tokens share an expert, so all are quantized at once.
    """
    quantizer = plan.inputs[attributes]
    return x if quantizer is None else quantizer.of_rows("first", amax)(x)


def sweep_experts(
    plan: SweepPlan, token_slice: TokenSlice, module: Any, result: SweepResult
) -> None:
    """Score every config on the experts of one layer; see ``sweep.sweep_slice``."""
    (name,) = token_slice.gradients
    experts = module.get_submodule(name)
    scorer = _ExpertsScorer(experts, token_slice, len(plan.configs))
    read = cache(partial(_quantized_input, plan, token_slice))
    for attributes, products in plan.products.items():
        weights = partial(quantized_experts, plan, experts, attributes)
        score_products(scorer, products, read, weights, result.failures)
    result.add(name, scorer.per_caption())


class _ExpertsScorer:
    """Scores quantized versions of one layer's experts; used like ``score_kernel.LinearScorer``."""

    def __init__(self, module: Any, token_slice: TokenSlice, versions: int) -> None:
        (gradient,) = token_slice.gradients.values()
        routing = token_slice.routing
        assert routing is not None
        self._module, self._parts = module, routing.parts
        read = ExpertInput(
            x=token_slice.x,
            experts=routing.experts,
            weights=routing.weights,
            on_hidden=_unchanged,
        )
        self._scorer = OutputScorer(
            self._output(expert_matrices(module), read),
            gradient,
            versions=versions,
            caption_lengths=token_slice.caption_lengths,
        )

    def add(self, version: int, x: ExpertInput, weight: Weights) -> None:
        """Score one version; a version that is never added scores 0."""
        self._scorer.add_output(version, self._output(weight, x))

    def per_caption(self) -> torch.Tensor:
        """Return the scores; see ``score_kernel.OutputScorer``."""
        return self._scorer.per_caption()

    def _output(self, weights: Weights, read: ExpertInput) -> torch.Tensor:
        parts = [experts_output(self._module, weights, read.rows(rows)) for rows in self._parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _quantized_input(
    plan: SweepPlan, token_slice: TokenSlice, attributes: Attributes
) -> ExpertInput:
    routing = token_slice.routing
    assert routing is not None
    return ExpertInput(
        x=quantized_rows(plan, attributes, token_slice.x, token_slice.amax),
        experts=routing.experts,
        weights=routing.weights,
        on_hidden=quantized_hidden(plan, attributes, routing.hidden_amax),
    )


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
