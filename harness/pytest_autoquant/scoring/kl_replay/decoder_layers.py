"""The decoder's layers: watched while the model runs, and left out of a run that starts later.

The model's own forward always runs, so what a model does between its layers stays its own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.offload.resident import resident
from pytest_autoquant.models.restore import forward_replaced

_HIDDEN = "hidden_states"

#: A layer's forward as a function of the layer and its arguments.
LayerForward = Callable[..., torch.Tensor]

#: Called with the index of a layer and the hidden state before it, ``(captions, tokens, hidden)``.
OnHidden = Callable[[int, torch.Tensor], None]


class DecoderLayers:
    """The layers of a model's decoder, each of which takes a hidden state and returns the next.

    Args:
        model: hooked and patched only inside the context managers below.

    Raises:
        NotReplayableError: the measured linears do not all lie in one list of layers.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._prefix, self._layers = _find_layers(model)
        self._head = model.module.get_output_embeddings()
        self._linears = [linear.name for linear in model.linears]

    def __len__(self) -> int:
        return len(self._layers)

    def compiled(self) -> LayerForward | None:
        """Return the layers' common forward, compiled; None where they have none in common.

        Every cast to the model's dtype stays where the model has it, so that compiled layers round
        as the others do.
        """
        forwards = {type(layer).forward for layer in self._layers}
        if len(forwards) > 1 or any("forward" in vars(layer) for layer in self._layers):
            return None
        options = {"emulate_precision_casts": True}
        compiled: LayerForward = torch.compile(forwards.pop(), dynamic=True, options=options)
        return compiled

    def index_of(self, linear: str) -> int:
        """Return the index of the layer that holds a linear."""
        return int(linear.removeprefix(self._prefix).partition(".")[0])

    def linears_of(self, index: int) -> list[str]:
        """Return the names of a layer's measured linears."""
        return [name for name in self._linears if self.index_of(name) == index]

    def resident(self, index: int) -> AbstractContextManager[nn.Module]:
        """Keep a layer's weights on the model's device for a while; see ``resident.resident``."""
        return resident(self._layers[index])

    @contextmanager
    def before_first(self, on_hidden: OnHidden) -> Iterator[None]:
        """Report the hidden state before the first layer in one run; no layer runs, nor the head.

        Raises:
            NotReplayableError: see ``watched``.
        """
        with ExitStack() as stack:
            if self._head is not None:
                stack.enter_context(forward_replaced(self._head, _pass_on))
            for layer in self._layers:
                stack.enter_context(forward_replaced(layer, _pass_on))
            stack.enter_context(self.watched(partial(_if_first, on_hidden)))
            yield

    @contextmanager
    def watched(self, on_hidden: OnHidden) -> Iterator[None]:
        """Report the hidden state before every layer.

        Raises:
            NotReplayableError: during the run: a layer runs twice or out of order, or takes or
                returns anything but a hidden state.
        """
        order = _Order(len(self._layers))
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                before = partial(_before, on_hidden, order, index)
                after = partial(_after, index)
                stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(after, with_kwargs=True).remove)
            yield
        order.check_end()

    @contextmanager
    def started_at(
        self,
        index: int,
        state: torch.Tensor,
        *,
        alone: bool = False,
        compiled: LayerForward | None = None,
    ) -> Iterator[None]:
        """Make the model's forward start at a layer: the layers before it do nothing.

        Args:
            state: hidden state before the layer, ``(captions, tokens, hidden)``.
            alone: whether the layers after it do nothing either, nor does the output embedding.
            compiled: what the layers after it run in place of their own forward.
        """
        with ExitStack() as stack:
            if alone and self._head is not None:
                stack.enter_context(forward_replaced(self._head, _pass_on))
            for place, layer in enumerate(self._layers):
                if place < index or (alone and place > index):
                    stack.enter_context(forward_replaced(layer, _pass_on))
                elif place > index and compiled is not None:
                    stack.enter_context(forward_replaced(layer, partial(compiled, layer)))
            start = partial(_with_hidden, state)
            hook = self._layers[index].register_forward_pre_hook(start, with_kwargs=True)
            stack.callback(hook.remove)
            yield

    @contextmanager
    def seen_before(self, index: int, on_hidden: OnHidden) -> Iterator[None]:
        """Report the hidden state before one layer, as the run brings it there."""
        hook = partial(_report, on_hidden, index)
        handle = self._layers[index].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _find_layers(model: LoadedModel) -> tuple[str, nn.ModuleList]:
    decoder = model.module.get_decoder()
    for name, child in model.module.named_modules():
        is_inside = any(child is each for each in decoder.children())
        if is_inside and isinstance(child, nn.ModuleList):
            prefix = f"{name}."
            if all(linear.name.startswith(prefix) for linear in model.linears):
                return prefix, child
    raise NotReplayableError(
        f"the linears of {type(model.module).__name__} do not all lie in one list of decoder "
        "layers; kl_div by replay cannot start between its layers: use --aq-engine modelopt"
    )


class _Order:
    """Checks that layers run once each, in order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._next = 0

    def enter(self, index: int) -> None:
        if index != self._next:
            raise _not_replayable(f"layer {index} runs where layer {self._next} was expected")
        self._next += 1

    def check_end(self) -> None:
        if self._next != self._count:
            raise _not_replayable(f"layer {self._next} does not run")


def _before(
    on_hidden: OnHidden, order: _Order, index: int, layer: Any, args: Any, kwargs: Any
) -> None:
    order.enter(index)
    on_hidden(index, _hidden(index, args, kwargs))


def _report(on_hidden: OnHidden, index: int, layer: Any, args: Any, kwargs: Any) -> None:
    on_hidden(index, _hidden(index, args, kwargs))


def _if_first(on_hidden: OnHidden, index: int, hidden: torch.Tensor) -> None:
    if index == 0:
        on_hidden(index, hidden)


def _after(index: int, layer: Any, args: Any, kwargs: Any, output: Any) -> None:
    before = _hidden(index, args, kwargs)
    if not isinstance(output, torch.Tensor) or output.shape != before.shape:
        raise _not_replayable(f"layer {index} does not return a hidden state alone")


def _hidden(index: int, args: Any, kwargs: Any) -> torch.Tensor:
    hidden = args[0] if args else kwargs.get(_HIDDEN)
    if not isinstance(hidden, torch.Tensor):
        raise _not_replayable(f"layer {index} does not take a hidden state first")
    return hidden


def _pass_on(*args: Any, **kwargs: Any) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs[_HIDDEN]
    return hidden


def _with_hidden(state: torch.Tensor, layer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    if args:
        return (state, *args[1:]), kwargs
    return args, {**kwargs, _HIDDEN: state}


def _not_replayable(reason: str) -> NotReplayableError:
    return NotReplayableError(
        f"{reason}; kl_div by replay cannot start between the model's layers: use "
        "--aq-engine modelopt"
    )
