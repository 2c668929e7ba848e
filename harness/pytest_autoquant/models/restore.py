"""Snapshot and restore of a module tree: an engine leaves the model as it was before.

ModelOpt converts a model in place: it replaces classes and ``forward``, adds quantizers, hooks and
buffers, and changes ``requires_grad`` and configs. A copy of the model would take its memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedAttribute:
    """One attribute.

    Attributes:
        value: kept by identity.
        contents: a shallow copy of the value if it is a dict, list or set, else None.
    """

    value: Any
    contents: Any

    @classmethod
    def of(cls, value: Any) -> SavedAttribute:
        """Save a value."""
        is_container = isinstance(value, (dict, list, set))
        return cls(value=value, contents=value.copy() if is_container else None)

    def restored(self) -> Any:
        """Return the value, after putting back what the container held."""
        if isinstance(self.value, list):
            self.value[:] = self.contents
        elif self.contents is not None:
            self.value.clear()
            self.value.update(self.contents)
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedObject:
    """The class and attributes of one object, such as a module or a Hugging Face config."""

    target: Any
    cls: type
    attributes: dict[str, SavedAttribute]

    @classmethod
    def of(cls, target: Any) -> SavedObject:
        """Save an object that keeps its attributes in ``__dict__``."""
        attributes = {name: SavedAttribute.of(value) for name, value in vars(target).items()}
        return cls(target=target, cls=type(target), attributes=attributes)

    def restore(self) -> None:
        """Put class and attributes back; attributes added since are removed."""
        if type(self.target) is not self.cls:
            self.target.__class__ = self.cls
        current = vars(self.target)
        current.clear()
        for name, attribute in self.attributes.items():
            current[name] = attribute.restored()


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedParameter:
    """``requires_grad`` and gradient of one parameter and, if asked for, a copy of its values."""

    parameter: nn.Parameter
    requires_grad: bool
    grad: torch.Tensor | None
    values: torch.Tensor | None

    @classmethod
    def of(cls, parameter: nn.Parameter, *, values: bool) -> SavedParameter:
        """Save a parameter."""
        return cls(
            parameter=parameter,
            requires_grad=parameter.requires_grad,
            grad=parameter.grad,
            values=parameter.detach().clone() if values else None,
        )

    def restore(self) -> None:
        """Put the parameter back; its values only if they were saved."""
        self.parameter.requires_grad_(self.requires_grad)
        self.parameter.grad = self.grad
        if self.values is not None:
            with torch.no_grad():
                self.parameter.copy_(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSnapshot:
    """Every module, config and parameter of a module tree."""

    objects: tuple[SavedObject, ...]
    parameters: tuple[SavedParameter, ...]

    @classmethod
    def of(cls, module: nn.Module, *, weights: bool = False) -> ModuleSnapshot:
        """Save a module tree.

        Args:
            weights: copy the values of the parameters as well.
        """
        modules = list(module.modules())
        configs = {id(c): c for c in (getattr(m, "config", None) for m in modules) if c}
        return cls(
            objects=tuple(SavedObject.of(target) for target in (*modules, *configs.values())),
            parameters=tuple(SavedParameter.of(p, values=weights) for p in module.parameters()),
        )

    def restore(self) -> None:
        """Put modules, configs and parameters back as they were saved."""
        for saved in self.objects:
            saved.restore()
        for parameter in self.parameters:
            parameter.restore()


@contextmanager
def preserved(module: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Restore a module tree when the block ends, also when it raises.

    Classes, attributes, hooks, buffers, ``requires_grad`` and Hugging Face configs are restored by
    identity.

    Args:
        weights: copy weight values and restore them as well, for calibration algorithms that
            change weights in place.
    """
    snapshot = ModuleSnapshot.of(module, weights=weights)
    try:
        yield
    finally:
        snapshot.restore()


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Replace a module's ``forward`` for a while; hooks of the module still run."""
    kept = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if kept is not None:
            module.forward = kept
