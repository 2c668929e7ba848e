"""What a recipe says: the format of every layer group of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER
from pytest_autoquant.formats.quantizer import QuantizerAttributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A candidate.

    Attributes:
        name: the pair, or ``pair-granularity``.
        weight: attributes of the weight quantizer, None where it is off; so ``input``.
        algorithm: by which ModelOpt calibrates.
    """

    name: str
    weight: QuantizerAttributes | None
    input: QuantizerAttributes | None
    algorithm: Any

    @classmethod
    def of(cls, name: str, config: EffectiveConfig) -> Format:
        """Return a pair under a granularity."""
        return cls(
            name=name,
            weight=config.weight,
            input=config.input,
            algorithm=config.algorithm,
        )

    @property
    def quantizers(self) -> tuple[tuple[str, QuantizerAttributes], ...]:
        """The quantizers that are on, each after its pattern in ``quant_cfg``."""
        both = ((WEIGHT_QUANTIZER, self.weight), (INPUT_QUANTIZER, self.input))
        return tuple((pattern, each) for pattern, each in both if each is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedGroup:
    """One layer group.

    Attributes:
        modules: the group's linears; all have the format.
        format: None where the group stays in 16 bits.
        widths: input width of each linear; empty if the manifest does not record them.
        score: predicted sensitivity per scored token in the format; None in 16 bits.
        bits: stored per weight; None if it is not recorded.
    """

    name: str
    modules: tuple[str, ...]
    format: Format | None
    widths: tuple[int, ...] = ()
    score: float | None = None
    bits: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The format of every layer group, and what is known of how it came about.

    Attributes:
        model: the model's name; ``digest`` of its config and weights, None if it is not recorded.
        candidates: what groups could take.
        rule: by which the formats were chosen.
        method: by which the groups were scored; None if it is not recorded.
        score: predicted sensitivity of the whole, per scored token.
        effective_bits: stored per weight over the language model's linears.
        notes: what a reader of the recipe should know.
    """

    model: str
    digest: str | None
    candidates: tuple[Format, ...]
    rule: Scheme
    method: str | None
    groups: tuple[DecidedGroup, ...]
    score: float
    effective_bits: float
    notes: tuple[str, ...] = ()

    @property
    def quantized(self) -> Iterator[tuple[DecidedGroup, Format]]:
        """The groups that have a format."""
        for group in self.groups:
            if group.format is not None:
                yield group, group.format

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats that groups have, in the order of the candidates."""
        used = {format.name for _, format in self.quantized}
        return tuple(format for format in self.candidates if format.name in used)

    def modules_in(self, format: Format | None) -> tuple[str, ...]:
        """The linears in a format; for None those that stay in 16 bits."""
        name = None if format is None else format.name
        return tuple(
            module
            for group in self.groups
            for module in group.modules
            if (None if group.format is None else group.format.name) == name
        )
