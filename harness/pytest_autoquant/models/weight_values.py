"""Values of weights that quantization cannot use: NaN, infinities, and matrices of zeros."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pytest_autoquant.errors import ModelError
from pytest_autoquant.models.layers import Linear, weight_matrices
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.text import counted, first_few


def check_finite(source: ModelSource, module: Any) -> None:
    """Refuse a model with NaN or an infinity among its parameters and buffers.

    Raises:
        ModelError: with the tensors and the number of such values in each.
    """
    tensors = {
        name: tensor.detach()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.is_floating_point() and tensor.numel()
    }
    broken = [
        name for name, values in _ranges(tensors).items() if not all(map(math.isfinite, values))
    ]
    if not broken:
        return
    counts = [int(tensors[name].isfinite().logical_not().sum()) for name in broken]
    named = [f"{name} ({counted(n, 'value')})" for name, n in zip(broken, counts, strict=True)]
    dtype = str(tensors[broken[0]].dtype).removeprefix("torch.")
    raise ModelError(
        f"model {source.name}: NaN or infinity in {counted(len(broken), 'weight tensor')} as "
        f"{dtype}: {first_few(named, 3)}; repair the checkpoint, or give another --aq-dtype if "
        "only this one cannot hold its values"
    )


def dead_linears(module: Any, linears: tuple[Linear, ...]) -> tuple[str, ...]:
    """Return the linears with a weight matrix of zeros only: a scale cannot be derived from one.

    Fused experts count as dead if one of their matrices is.
    """
    matrices = {
        (linear.name, index): matrix
        for linear in linears
        for index, matrix in enumerate(_each(module.get_submodule(linear.name)))
    }
    dead = {name for (name, _), values in _ranges(matrices).items() if values == (0.0, 0.0)}
    return tuple(linear.name for linear in linears if linear.name in dead)


def _each(child: Any) -> list[torch.Tensor]:
    """Return the 2-D weights of a linear, or of every fused expert."""
    stacked = [matrix.detach() for matrix in weight_matrices(child)]
    return [each for matrix in stacked for each in (matrix if matrix.dim() == 3 else [matrix])]


def _ranges(tensors: Mapping[Any, torch.Tensor]) -> dict[Any, tuple[float, float]]:
    """Return least and largest value of each tensor, NaN where it holds one; each is read once."""
    if not tensors:
        return {}
    found = [torch.stack(torch.aminmax(tensor)).float() for tensor in tensors.values()]
    table = torch.stack(found).tolist()
    return {name: (least, most) for name, (least, most) in zip(tensors, table, strict=True)}
