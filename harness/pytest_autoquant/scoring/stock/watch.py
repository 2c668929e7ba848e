"""Watches the linears of a model for inputs and gradients other than zero, while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.scoring.signal import Signal


class Watch:
    """What passed through each linear so far."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._fed: dict[str, torch.Tensor] = {}
        self._moved: dict[str, torch.Tensor] = {}

    def on_linear(self, name: str, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Note one call; the gradient of its output is noted when it is computed."""
        _note(self._fed, name, next(iter((*args, *kwargs.values()))))
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(partial(_note, self._moved, name))

    def signal(self, *, has_gradients: bool) -> Signal:
        """Return the linears without a signal.

        Args:
            has_gradients: whether the method computes gradients.
        """
        names = [linear.name for linear in self._model.linears]
        return Signal(
            dead=self._model.dead,
            unfed=tuple(name for name in names if not self._fed.get(name)),
            unmoved=tuple(name for name in names if has_gradients and not self._moved.get(name)),
        )


@contextmanager
def watched(model: LoadedModel) -> Iterator[Watch]:
    """Hook the linears until the block ends."""
    watch = Watch(model)
    with ExitStack() as stack:
        for linear in model.linears:
            module = model.module.get_submodule(linear.name)
            hook = partial(watch.on_linear, linear.name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield watch


def _note(seen: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
    """Remember, on the device, whether any value was other than zero."""
    is_any = values.detach().any()
    seen[name] = is_any if name not in seen else seen[name] | is_any
