"""Granularities (overlays): which axis or block shares a scale, static or dynamic, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER

_PER_TOKEN_DYNAMIC = {"type": "dynamic", "block_sizes": {-1: None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Granularity:
    """Overrides of the two quantizer entries of a base config, already normalised.

    ``weight`` and ``input`` are partial ModelOpt quantizer attributes, or None where the overlay
    leaves that quantizer alone.
    """

    name: str
    weight: Mapping[str, Any] | None = None
    input: Mapping[str, Any] | None = None

    @property
    def overrides(self) -> dict[str, Mapping[str, Any]]:
        """The overrides by quantizer pattern, without a quantizer that is left alone."""
        both = {WEIGHT_QUANTIZER: self.weight, INPUT_QUANTIZER: self.input}
        return {pattern: override for pattern, override in both.items() if override is not None}


#: The overlay that changes nothing.
DEFAULT = Granularity(name="default")


def builtin_granularities() -> dict[str, Granularity]:
    """Return the built-in overlays by name, in the order tables and reports show them."""
    overlays = (
        DEFAULT,
        Granularity(
            name="recipe_match_channel_token", weight={"axis": 0}, input=_PER_TOKEN_DYNAMIC
        ),
        Granularity(name="w_per_tensor", weight={"axis": None}),
        Granularity(name="w_per_out_channel", weight={"axis": 0}),
        Granularity(name="w_per_in_channel", weight={"axis": 1}),
        Granularity(name="w_group64", weight={"block_sizes": {-1: 64}}),
        Granularity(name="w_group128", weight={"block_sizes": {-1: 128}}),
        Granularity(name="a_per_token_dynamic", input=_PER_TOKEN_DYNAMIC),
        Granularity(name="a_per_tensor_static", input={"type": "static", "axis": None}),
        Granularity(name="a_per_hidden_channel", input={"axis": -1}),
    )
    return {overlay.name: overlay for overlay in overlays}
