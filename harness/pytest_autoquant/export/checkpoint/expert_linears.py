"""The linears that ModelOpt's export makes of fused experts.

Source: ``_export_fused_experts`` in ``modelopt/torch/export/moe_utils.py``, 0.47.0. The first
matrix of an expert is its gate and up projection in one, or its up projection alone; both have the
ranges of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pytest_autoquant.models.layers import expert_matrices
from pytest_autoquant.models.loading import LoadedModel

_GATED = "gate_up_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLinear:
    """One linear of one expert.

    Attributes:
        name: in the export, such as ``mlp.experts.3.gate_proj``.
        matrix: name of the fused parameter, ``(experts, out_features, in_features)``.
        expert: index of the expert in it; ``rows`` are the linear's outputs.
    """

    name: str
    matrix: str
    expert: int
    rows: slice

    def of(self, matrices: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return its part of the fused matrices, ``(out_features, in_features)``."""
        return matrices[self.matrix][self.expert, self.rows]


def fused_experts(model: LoadedModel) -> dict[str, Any]:
    """Return the modules of fused experts, by name."""
    names = [linear.name for linear in model.linears if linear.is_fused]
    return {name: model.module.get_submodule(name) for name in names}


def expert_linears(name: str, module: Any) -> Iterator[ExpertLinear]:
    """Yield every linear of every expert."""
    for matrix, parameter in expert_matrices(module).items():
        half = parameter.shape[1] // 2
        parts = {"gate_proj": slice(0, half), "up_proj": slice(half, None)}
        for part, rows in (parts if matrix == _GATED else {matrix: slice(None)}).items():
            for expert in range(len(parameter)):
                yield ExpertLinear(
                    name=f"{name}.{expert}.{part}", matrix=matrix, expert=expert, rows=rows
                )
