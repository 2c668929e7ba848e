"""Brings offloaded weights to the device that computes, by the hooks that accelerate attaches.

accelerate (seen in 1.15) wraps the ``forward`` of each module with weights of its own: the weights
come from a map before it and are dropped after it. While the hook's ``offload`` is false it moves
none, so weights that are brought once stay for many runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from pytest_autoquant.models.offload.device_map import DISK, DeviceMap

_M = TypeVar("_M", bound=nn.Module)


def dispatch(
    module: Any,
    placed: DeviceMap,
    weights: Mapping[str, torch.Tensor],
    disk_index: Mapping[str, Any] | None = None,
) -> None:
    """Attach accelerate's hooks to a model.

    Args:
        module: with the weights of the device that computes; others may be on the meta device.
        weights: by name, those that are elsewhere and not in ``disk_index``; read whenever one is
            needed.
        disk_index: by name, the safetensors file of a weight, as accelerate describes it.

    Raises:
        ValueError: a weight has no place, or is nowhere; see ``missing_weights``.
    """
    from accelerate import dispatch_model

    # "disk" is accelerate's word for weights that come from a map, wherever the map has them.
    dispatch_model(
        module,
        {name: at if at == placed.main else DISK for name, at in placed.places.items()},
        main_device=placed.main,
        state_dict=weights,
        offload_index=dict(disk_index or {}),
        skip_keys=module._skip_keys_device_placement,
        force_hooks=True,
    )
    missing = missing_weights(module)
    if missing:
        raise ValueError(f"no place holds {missing[0]}")


def undispatch(module: Any) -> Mapping[str, Any]:
    """Take accelerate's hooks off; return the index of the weights that are on disk.

    Those stay on the meta device; the others are put back where they were before.
    """
    from accelerate.hooks import remove_hook_from_submodules

    index: Mapping[str, Any] = {}
    for child in module.modules():
        hook = _hook(child)
        if hook is not None and hook.weights_map is not None:
            index = hook.weights_map.dataset.index
            break
    remove_hook_from_submodules(module)
    return index


def is_offloaded(module: nn.Module) -> bool:
    """Whether some weights are brought only when they are needed."""
    return any(_hook(child) is not None for child in module.modules())


def missing_weights(module: nn.Module) -> list[str]:
    """Return the names of tensors on the meta device that no hook brings."""
    return [
        f"{name}.{own}" if name else own
        for name, child in module.named_modules()
        for own, tensor in _own_tensors(child)
        if tensor.is_meta and not _is_brought(child, own)
    ]


@contextmanager
def resident(module: _M) -> Iterator[_M]:
    """Keep the weights of a module and its submodules on the device that computes.

    Does nothing for weights that are there anyway.
    """
    with ExitStack() as stack:
        for child in module.modules():
            stack.enter_context(held(child))
        yield module


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Keep the weights of a module itself, without those of its submodules; see ``resident``."""
    hook = _hook(module)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    hook.offload = False
    try:
        yield
    finally:
        hook.offload = True
        hook.post_forward(module, None)


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter and buffer with its name, while it is at hand.

    One that several modules share is yielded once, unless it is offloaded.
    """
    seen: set[int] = set()
    for name, child in module.named_modules():
        is_brought = _hook(child) is not None
        with held(child):
            for own, tensor in _own_tensors(child):
                if is_brought or id(tensor) not in seen:
                    yield (f"{name}.{own}" if name else own), tensor
                if not is_brought:
                    seen.add(id(tensor))


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _is_brought(module: nn.Module, own: str) -> bool:
    hook = _hook(module)
    if hook is None or hook.weights_map is None:
        return False
    # Not "in" the map: that would read the weight.
    return f"{hook.weights_map.prefix}{own}" in set(iter(hook.weights_map))


def _hook(module: nn.Module) -> Any:
    """Return the hook that brings a module's weights, None if it has none or they are held."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "offload", False):
            return each
    return None
