"""The forward of a layer's fused experts, watched or with other weights and inputs.

It is the model's own: what changes is which weights it reads and what its products are given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_autoquant.models.restore import forward_replaced

#: By name of the matrix: ``(experts, out_features, in_features)``.
ExpertMatrices = Mapping[str, torch.Tensor]

#: Called with what the second matrix of an expert reads, ``(tokens, intermediate)``.
OnHidden = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertInput:
    """What a layer's experts read.

    Attributes:
        x: ``(tokens, hidden)``.
        on_hidden: changes or notes what the second matrices read.
    """

    x: torch.Tensor
    on_hidden: OnHidden

    def rows(self, rows: slice) -> ExpertInput:
        """Return the input of some tokens."""
        return replace(self, x=self.x[rows])


class _SecondInput(TorchFunctionMode):  # type: ignore[misc]
    """Passes what the second matrix of every expert reads through a function.

    Experts multiply by their first and second matrix in turn; ModelOpt counts them in this way too.
    """

    def __init__(self, on_hidden: OnHidden) -> None:
        super().__init__()
        self._on_hidden = on_hidden
        self._is_second = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.linear:
            if self._is_second:
                args = (self._on_hidden(args[0]), *args[1:])
            self._is_second = not self._is_second
        return func(*args, **(kwargs or {}))


def experts_output(
    module: Any,
    matrices: ExpertMatrices,
    read: ExpertInput,
    experts: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Run the experts' own forward with other matrices, ``(tokens, hidden)``.

    Args:
        experts: of each token, ``(tokens, experts per token)``.
        weights: of their outputs, ``(tokens, experts per token)``.
    """
    run = copy.copy(module)
    vars(run).pop("forward", None)  # what replaces the forward of the model's own module
    vars(run)["_parameters"] = {**vars(module)["_parameters"], **matrices}
    with _SecondInput(read.on_hidden):
        output: torch.Tensor = run.forward(read.x, experts, weights)
    return output


@contextmanager
def watched_experts(module: Any, on_hidden: OnHidden) -> Iterator[None]:
    """Pass what the second matrices read through a function, whenever the experts run."""
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        with _SecondInput(on_hidden):
            output: torch.Tensor = forward(*args, **kwargs)
        return output

    with forward_replaced(module, watched):
        yield


def unchanged(hidden: torch.Tensor) -> torch.Tensor:
    """Return what the second matrices read, as it is."""
    return hidden
