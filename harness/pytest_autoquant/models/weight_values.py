"""Values of weights that quantization cannot use: NaN, infinities, and matrices of zeros."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from pytest_autoquant.errors import ModelError
from pytest_autoquant.models.layers import Linear, weight_matrices
from pytest_autoquant.models.offload.resident import resident, tensors
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.text import counted, first_few


def check_finite(source: ModelSource, module: Any) -> None:
    """Refuse a model with NaN or an infinity among its parameters and buffers.

    Raises:
        ModelError: with the tensors and the number of such values in each.
    """
    ranges = _ranges(
        (name, tensor.detach())
        for name, tensor in tensors(module)
        if tensor.is_floating_point() and tensor.numel()
    )
    broken = [name for name, values in ranges.items() if not all(map(math.isfinite, values))]
    if not broken:
        return
    found = [
        (name, int(tensor.isfinite().logical_not().sum()), tensor.dtype)
        for name, tensor in tensors(module)
        if name in broken
    ]
    named = [f"{name} ({counted(number, 'value')})" for name, number, _ in found]
    dtype = str(found[0][2]).removeprefix("torch.")
    raise ModelError(
        f"model {source.name}: NaN or infinity in {counted(len(broken), 'weight tensor')} as "
        f"{dtype}: {first_few(named, 3)}; repair the checkpoint, or give another --aq-dtype if "
        "only this one cannot hold its values"
    )


def dead_linears(module: Any, linears: tuple[Linear, ...]) -> tuple[str, ...]:
    """Return the linears with a weight matrix of zeros only: a scale cannot be derived from one.

    Fused experts count as dead if one of their matrices is.
    """
    ranges = _ranges(_matrices(module, linears))
    dead = {name for (name, _), values in ranges.items() if values == (0.0, 0.0)}
    return tuple(linear.name for linear in linears if linear.name in dead)


def _matrices(
    module: Any, linears: tuple[Linear, ...]
) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
    """Yield each matrix by linear and place, while it is at hand."""
    for linear in linears:
        with resident(module.get_submodule(linear.name)) as child:
            for index, matrix in enumerate(_each(child)):
                yield (linear.name, index), matrix


def _each(child: Any) -> list[torch.Tensor]:
    """Return the 2-D weights of a linear, or of every fused expert."""
    stacked = [matrix.detach() for matrix in weight_matrices(child)]
    return [each for matrix in stacked for each in (matrix if matrix.dim() == 3 else [matrix])]


def _ranges(tensors: Iterable[tuple[Any, torch.Tensor]]) -> dict[Any, tuple[float, float]]:
    """Return least and largest value of each tensor, NaN where it holds one; each is read once."""
    found = {name: torch.stack(torch.aminmax(tensor)).float() for name, tensor in tensors}
    if not found:
        return {}
    table = torch.stack(list(found.values())).tolist()
    return {name: (least, most) for name, (least, most) in zip(found, table, strict=True)}
