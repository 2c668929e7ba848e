"""Which linears carried no signal, so that a score of zero says nothing of their sensitivity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_autoquant.text import counted, first_few

_LAYER = re.compile(r".*?\.\d+(?=\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Linears through which nothing passed that a score could be made of.

    Attributes:
        dead: all weights of the linear, or of one of its fused experts, are zero.
        unfed: the linear never ran, or all its inputs were zero.
        unmoved: no gradient of its output was other than zero. Empty for ``kl_div``.
    """

    dead: tuple[str, ...] = ()
    unfed: tuple[str, ...] = ()
    unmoved: tuple[str, ...] = ()

    def keeps_16_bits(self, modules: Sequence[str]) -> bool:
        """Whether a group must not be quantized: a range of zero gives no scale.

        ModelOpt 0.47.0 exports NaN for an FP8 weight of zeros, and a scale that it did not
        calibrate for an input of zeros.
        """
        return not {*self.dead, *self.unfed}.isdisjoint(modules)

    def is_missing(self, modules: Sequence[str]) -> bool:
        """Whether a score of zero for a group has no cause that is known.

        A dead linear is a cause: where ``o_proj`` is dead, nothing flows back to q, k and v; where
        ``v_proj`` is, nothing reaches ``o_proj``. So is one elsewhere in the group's decoder layer.
        """
        silent = {*self.unfed, *self.unmoved}
        return silent.issuperset(modules) and not self._is_beside_dead(modules[0])

    def notes(self) -> tuple[str, ...]:
        """Return a sentence each for dead linears and for the linears beside them."""
        unfed = [name for name in self.unfed if name not in self.dead]
        unmoved = [name for name in self.unmoved if name not in {*self.dead, *unfed}]
        sentences = (
            (self.dead, "all weights are zero", "a group with one stays in 16 bits"),
            (unfed, "all inputs are zero", "a group with one stays in 16 bits"),
            (unmoved, "all gradients are zero", "one adds nothing to its group's score"),
        )
        return tuple(
            f"{what} of {counted(len(names), 'linear')}: {first_few(names)}; {effect}"
            for names, what, effect in sentences
            if names
        )

    def _is_beside_dead(self, name: str) -> bool:
        return _layer_of(name) in {_layer_of(dead) for dead in self.dead}


def _layer_of(name: str) -> str:
    found = _LAYER.match(name)
    return name if found is None else found[0]
