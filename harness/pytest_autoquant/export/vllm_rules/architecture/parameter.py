"""A tensor that an architecture has, before it is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A tensor of an unquantized checkpoint.

    Attributes:
        name: in the checkpoint.
        is_linear: whether it is the weight of a linear that vLLM can load quantized,
            ``(out_features, in_features)``.
    """

    name: str
    shape: tuple[int, ...]
    is_linear: bool = False


def plain(name: str, *shape: int) -> Parameter:
    """Return a tensor that is never quantized."""
    return Parameter(name=name, shape=shape)


def linear(name: str, outputs: int, inputs: int, *, has_bias: bool = False) -> Iterator[Parameter]:
    """Yield the tensors of a linear that can be quantized."""
    yield Parameter(name=f"{name}.weight", shape=(outputs, inputs), is_linear=True)
    if has_bias:
        yield plain(f"{name}.bias", outputs)


def with_bias(name: str, *shape: int) -> Iterator[Parameter]:
    """Yield a weight that is never quantized, and its bias."""
    yield plain(f"{name}.weight", *shape)
    yield plain(f"{name}.bias", shape[0])
