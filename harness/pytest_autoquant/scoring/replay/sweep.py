"""One sweep over a tape: every config is scored on every linear, linear by linear.

Each distinct weight quantizer runs once per weight and each distinct input quantizer once per
input; each pair of them that a config asks for is multiplied once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch.nn import functional

from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.formats.quantizer import QuantizerAttributes
from pytest_autoquant.models.offload.resident import resident
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.replay.quantizers import ShapedQuantizers
from pytest_autoquant.scoring.replay.score_kernel import LinearScorer
from pytest_autoquant.scoring.replay.token_slices import TokenSlice

#: Attributes of a config's weight or input quantizer, None if the config leaves it unquantized.
Attributes = QuantizerAttributes | None

#: Quantizers by their attributes.
Quantizers = Mapping[Attributes, ShapedQuantizers | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedProduct:
    """A config, by its index in the sweep, and its input quantizer."""

    config: int
    input: Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A config, by its index in the sweep, and its quantizers."""

    config: int
    weight: Attributes
    input: Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """The configs of a sweep and their distinct quantizers.

    Attributes:
        products: by weight quantizer, the products that use the weight.
    """

    configs: tuple[EffectiveConfig, ...]
    weights: Quantizers
    inputs: Quantizers
    products: Mapping[Attributes, Sequence[WantedProduct]]

    @property
    def versions(self) -> list[Version]:
        """Every config, those of one weight quantizer together."""
        return [
            Version(config=product.config, weight=weight, input=product.input)
            for weight, products in self.products.items()
            for product in products
        ]

    def quantized_weight(
        self, attributes: Attributes, weight: torch.Tensor, amax: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return a weight as one of the plan's quantizers gives it; see ``ShapedQuantizers``."""
        quantizer = self.weights[attributes]
        return weight if quantizer is None else quantizer.weight(weight, amax)

    def quantized_input(
        self, attributes: Attributes, x: torch.Tensor, amax: torch.Tensor, together: int
    ) -> torch.Tensor:
        """Return an input as one of the plan's quantizers gives it; see ``ShapedQuantizers``."""
        quantizer = self.inputs[attributes]
        return x if quantizer is None else quantizer.input(x, amax, together)

    def is_enabled(self, config: EffectiveConfig) -> bool:
        """Whether every quantizer of a config is on; false before its first use."""
        return all(each is None or each.is_enabled for each in self._quantizers(config).values())

    def descriptions(self, config: EffectiveConfig) -> dict[str, str]:
        """Return ModelOpt's description of a config's quantizers, once they have been used."""
        return {
            name: "disabled" if quantizer is None else quantizer.describe()
            for name, quantizer in self._quantizers(config).items()
        }

    def keep_descriptions(self) -> None:
        """Describe all quantizers from now on as they are now."""
        for quantizer in (*self.weights.values(), *self.inputs.values()):
            if quantizer is not None:
                quantizer.keep_description()

    def _quantizers(self, config: EffectiveConfig) -> dict[str, ShapedQuantizers | None]:
        """Return a config's quantizers by the name that ModelOpt gives them in a linear."""
        return {
            "weight_quantizer": self.weights[config.weight],
            "input_quantizer": self.inputs[config.input],
        }


def plan_sweep(configs: Sequence[EffectiveConfig]) -> SweepPlan:
    """Find the distinct quantizers of the configs, and which products of them are wanted."""
    products: dict[Attributes, list[WantedProduct]] = {}
    for index, config in enumerate(configs):
        wanted = WantedProduct(config=index, input=config.input)
        products.setdefault(config.weight, []).append(wanted)
    return SweepPlan(
        configs=tuple(configs),
        weights=_distinct(config.weight for config in configs),
        inputs=_distinct(config.input for config in configs),
        products=products,
    )


def _distinct(attributes: Iterable[Attributes]) -> Quantizers:
    return {each: None if each is None else ShapedQuantizers(each) for each in attributes}


@dataclass(slots=True)
class SweepResult:
    """Scores so far.

    Attributes:
        scores: by linear, ``(configs, captions)`` on the device, captions in the tape's order; or
            ``(configs, captions, 1 + draws)``, a score and loss changes, squared by group.
        failures: by index of the config; a config that failed is not scored any further.
    """

    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)

    def add(self, name: str, scores: torch.Tensor) -> None:
        """Add a linear's scores over some of its tokens."""
        known = self.scores.get(name)
        self.scores[name] = scores if known is None else known + scores

    def by_group(self, groups: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return the scores of groups of linears, ``(groups, configs, captions)``, on the device.

        Args:
            groups: the members of each group.
        """
        sums = (torch.stack([self.scores[name] for name in members]).sum(0) for members in groups)
        return torch.stack([_squared(each) if each.dim() == 3 else each for each in sums])


def _squared(parts: torch.Tensor) -> torch.Tensor:
    """Return scores, ``(configs, captions)``, of a group's scores and loss changes."""
    return parts[..., 0] + parts[..., 1:].square().sum(-1)


class Scorer(Protocol):
    """Scores many quantized versions of one linear; see ``score_kernel.LinearScorer``."""

    def add(self, version: int, x: Any, weight: Any) -> None: ...

    def per_caption(self) -> torch.Tensor: ...


#: Returns the scorer of a linear, by its name, for a number of versions.
ScorerOf = Callable[[str, Any, TokenSlice, int], Scorer]


def output_change_scorer(name: str, linear: Any, token_slice: TokenSlice, versions: int) -> Scorer:
    """Return the scorer of ``gradient``, ModelOpt's formula."""
    return LinearScorer(
        functional.linear(token_slice.x, linear.weight, linear.bias),
        token_slice.gradients[name],
        linear.bias,
        versions=versions,
        caption_lengths=token_slice.caption_lengths,
    )


def sweep_slice(
    plan: SweepPlan,
    token_slice: TokenSlice,
    module: Any,
    result: SweepResult,
    scorer_of: ScorerOf = output_change_scorer,
) -> None:
    """Score every config on the linears that read one input.

    Args:
        module: the model, which is only read.

    Raises:
        torch.OutOfMemoryError: any other error is one config's failure.
    """
    quantized_input = cache(partial(_quantized_input, plan, token_slice))
    for name in token_slice.gradients:
        with resident(module.get_submodule(name)) as linear:
            scorer = scorer_of(name, linear, token_slice, len(plan.configs))
            for attributes, products in plan.products.items():
                weight = partial(plan.quantized_weight, attributes, linear.weight)
                score_products(scorer, products, quantized_input, weight, result.failures)
            result.add(name, scorer.per_caption())


def score_products(
    scorer: Scorer,
    products: Sequence[WantedProduct],
    quantized_input: Callable[[Attributes], Any],
    quantized_weight: Callable[[], Any],
    failures: dict[int, Failure],
) -> None:
    """Score the products of one weight, which is quantized on first use and dropped at the end."""
    weight = cache(quantized_weight)
    for product in products:
        if product.config in failures:
            continue
        try:
            scorer.add(product.config, quantized_input(product.input), weight())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failures[product.config] = Failure.of(error)


def _quantized_input(
    plan: SweepPlan, token_slice: TokenSlice, attributes: Attributes
) -> torch.Tensor:
    together = token_slice.num_multi_caption_tokens
    return plan.quantized_input(attributes, token_slice.x, token_slice.amax, together)
