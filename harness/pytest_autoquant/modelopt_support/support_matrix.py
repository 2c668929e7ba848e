"""Support status of every pair under every overlay, and the layers that block sizes pad."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.grid.case import Combination
from pytest_autoquant.modelopt_support.status import Support
from pytest_autoquant.models.layers import Linear


class Configs(Protocol):
    """What resolves combinations and probes them on a device."""

    def config(self, combination: Combination) -> EffectiveConfig:
        """Return the effective config of a combination."""

    def support(self, combination: Combination) -> Support:
        """Return whether a combination can run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationSupport:
    """One cell of the matrix.

    Attributes:
        alias_of: an earlier, supported combination with an equal effective config.
    """

    combination: Combination
    support: Support
    alias_of: Combination | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedLayer:
    """A linear whose input width is not a multiple of the weight quantizer's block size."""

    granularity: str
    weight_dtype: str
    linear: str
    in_features: int
    padded_to: int


def support_matrix(
    configs: Configs, combinations: Iterable[Combination]
) -> tuple[CombinationSupport, ...]:
    """Return the status of each combination, and which of them are measured once."""
    first: dict[str, Combination] = {}
    cells = []
    for combination in combinations:
        digest, support = configs.config(combination).digest, configs.support(combination)
        alias_of = first.get(digest) if support.is_supported else None
        if support.is_supported:
            first.setdefault(digest, combination)
        cells.append(
            CombinationSupport(combination=combination, support=support, alias_of=alias_of)
        )
    return tuple(cells)


def padded_layers(
    configs: Iterable[EffectiveConfig], linears: Sequence[Linear]
) -> tuple[PaddedLayer, ...]:
    """Return each distinct padding of a linear, in the order of the configs."""
    padded = {
        PaddedLayer(
            granularity=config.granularity.name,
            weight_dtype=config.pair.weight,
            linear=linear.name,
            in_features=width,
            padded_to=config.padded_width(width),
        ): None
        for config in configs
        for linear in linears
        for width in linear.input_widths
        if config.padded_width(width) != width
    }
    return tuple(padded)
