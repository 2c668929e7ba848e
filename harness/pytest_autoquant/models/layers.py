"""Which linears of a model are measured, and their shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.formats.quant_pair import is_excluded
from pytest_autoquant.models.architecture import build_model, load_config
from pytest_autoquant.models.registry import ModelSource

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "top_k",
    "num_selected_experts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear of the language model: weight shape ``(out_features, in_features)``.

    ModelOpt takes the fused experts of a layer as one unit. They are one ``Linear`` here, as wide
    as the hidden state and with as many weights as all experts together.

    Attributes:
        name: module name in the model.
        input_widths: input width of each weight matrix in the module: ``(in_features,)``, and one
            width per matrix for fused experts.
        expert_shapes: ``(experts, out_features, in_features)`` of each matrix of fused experts.
        experts_per_token: of fused experts, how many a token is routed to; None if unknown.
    """

    name: str
    module_type: str
    out_features: int
    in_features: int
    input_widths: tuple[int, ...]
    expert_shapes: tuple[tuple[int, int, int], ...] = ()
    experts_per_token: int | None = None

    @property
    def num_weights(self) -> int:
        """Number of weights, without biases."""
        return self.out_features * self.in_features

    @property
    def is_fused(self) -> bool:
        """Whether this is a module of fused experts."""
        return len(self.input_widths) > 1

    @property
    def output_width(self) -> int:
        """Width of the output: ``out_features``, and that of the last matrix of fused experts."""
        return self.expert_shapes[-1][1] if self.expert_shapes else self.out_features

    @property
    def weights_per_product(self) -> int:
        """Number of weights in one matrix product: on average, of the experts' matrices."""
        products = sum(experts for experts, _, _ in self.expert_shapes)
        return self.num_weights // max(1, products)

    @property
    def active_weights(self) -> int:
        """Number of weights that a token is multiplied with: those of the experts it is sent to."""
        if not self.expert_shapes or self.experts_per_token is None:
            return self.num_weights
        return sum(
            self.experts_per_token * rows * columns for _, rows, columns in self.expert_shapes
        )

    def stored_bits(self, config: EffectiveConfig) -> int:
        """Return the bits of the weight as ``config`` stores it: every scale included."""
        shapes = self.expert_shapes or ((1, self.out_features, self.in_features),)
        return sum(count * config.stored_bits(rows, columns) for count, rows, columns in shapes)

    def padded_to(self, config: EffectiveConfig) -> int | None:
        """Return the width to which blocks pad the input, None where they divide it."""
        widths = ((width, config.padded_width(width)) for width in self.input_widths)
        return next((padded for width, padded in widths if padded != width), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model without weights: its modules on the meta device, and the measured linears."""

    module: Any
    linears: tuple[Linear, ...]


def load_architecture(source: ModelSource, *, trust_remote_code: bool) -> Architecture:
    """Build a model from its config, without loading weights.

    Raises:
        ModelError: the config cannot be loaded or is of another kind of model.
    """
    config = load_config(source, random_weights=True, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        module = build_model(config, source, trust_remote_code=trust_remote_code)
    return Architecture(module=module, linears=language_model_linears(module))


def architecture_linears(source: ModelSource, *, trust_remote_code: bool) -> tuple[Linear, ...]:
    """Return the language model's linears from its config; see ``load_architecture``."""
    return load_architecture(source, trust_remote_code=trust_remote_code).linears


def language_model_linears(module: Any) -> tuple[Linear, ...]:
    """Return the linears and fused experts of the decoder, in module order.

    These are what ModelOpt's presets quantize: routers and gates of mixtures are not among them.
    The vision tower and ``lm_head`` are not in the decoder.
    """
    decoder = module.get_decoder()
    prefix = next(name for name, child in module.named_modules() if child is decoder)
    named = (
        (f"{prefix}.{name}" if prefix else name, child) for name, child in decoder.named_modules()
    )
    experts_per_token = _experts_per_token(decoder)
    return tuple(
        _describe(name, child, experts_per_token)
        for name, child in named
        if (isinstance(child, nn.Linear) or expert_matrices(child)) and not is_excluded(name)
    )


def bits_per_weight(linears: Collection[Linear], config: EffectiveConfig) -> float:
    """Return the bits stored per weight of linears, all of them quantized; nominal without any."""
    if not linears:
        return config.effective_bits
    stored = sum(linear.stored_bits(config) for linear in linears)
    return stored / sum(linear.num_weights for linear in linears)


def bits_per_active_weight(linears: Collection[Linear], config: EffectiveConfig) -> float | None:
    """Return the bits per weight that a token is multiplied with; None where those are all."""
    if not has_idle_weights(linears):
        return None
    weights = sum(linear.active_weights for linear in linears)
    shares = (linear.active_weights / linear.num_weights for linear in linears)
    stored = (linear.stored_bits(config) for linear in linears)
    return sum(bits * share for bits, share in zip(stored, shares, strict=True)) / weights


def has_idle_weights(linears: Collection[Linear]) -> bool:
    """Whether there are weights that not every token is multiplied with."""
    return any(linear.active_weights < linear.num_weights for linear in linears)


def other_weighted_modules(module: nn.Module, linears: tuple[Linear, ...]) -> tuple[str, ...]:
    """Return the names of the linears and convolutions that are not in ``linears``."""
    measured = {linear.name for linear in linears}
    return tuple(
        name
        for name, child in module.named_modules()
        if isinstance(child, (nn.Linear, *_CONVOLUTIONS)) and name not in measured
    )


def weight_matrices(child: nn.Module) -> list[nn.Parameter]:
    """Return a linear's weight, or the weights of fused experts; see ``Linear``."""
    if isinstance(child, nn.Linear):
        return [child.weight]
    return list(expert_matrices(child).values())


def expert_matrices(child: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's own parameters of shape ``(experts, out_features, in_features)``."""
    if isinstance(child, _CONVOLUTIONS):
        return {}
    own = child.named_parameters(recurse=False)
    return {name: parameter for name, parameter in own if parameter.dim() == 3}


def _experts_per_token(decoder: nn.Module) -> int | None:
    """Return how many experts a token is routed to, by the names that ModelOpt knows as well.

    Source: ``_ACTIVE_MOE_TOP_K_ATTRS`` in ``modelopt/torch/quantization/_auto_quantize_cost.py``.
    """
    config = getattr(decoder, "config", None)
    found = (getattr(config, name, None) for name in _TOP_K)
    return next((value for value in found if isinstance(value, int)), None)


def _describe(name: str, child: nn.Module, experts_per_token: int | None) -> Linear:
    matrices = weight_matrices(child)
    experts = [] if isinstance(child, nn.Linear) else matrices
    widths = tuple(matrix.shape[-1] for matrix in matrices)
    return Linear(
        name=name,
        module_type=type(child).__name__,
        out_features=sum(matrix.numel() for matrix in matrices) // widths[0],
        in_features=widths[0],
        input_widths=widths,
        expert_shapes=tuple(tuple(matrix.shape) for matrix in experts),
        experts_per_token=experts_per_token if experts else None,
    )
