"""Every internal name of ModelOpt that this package uses.

Public here means: documented at the top of ``modelopt.torch.quantization`` or
``modelopt.torch.export`` (``quantize``, ``auto_quantize``, the ``*_CFG`` presets,
``export_hf_checkpoint``). Everything else can move in any release, so it is reached through this
module only. ``tests/unit/modelopt_support/test_private_api.py`` fails when a name has moved.

Paths in docstrings are relative to ``modelopt/torch`` and were checked on ``CHECKED_VERSION``.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import nn

from pytest_autoquant.formats.quantizer import COST_ONLY, QuantizerAttributes

#: The ModelOpt release on which every name below was checked.
CHECKED_VERSION = "0.47.0"

#: A rule maps a module's name to the key of its group: a regular expression with one capturing
#: group, or a function of (model, name) that returns None where it does not apply.
GroupingRule = str | Callable[[nn.Module, str], str | None]

ExtensionLoader = Callable[..., ModuleType | None]


class Quantizer(Protocol):
    """``TensorQuantizer`` (quantization/nn/modules/tensor_quantizer.py), as far as it is used."""

    amax: torch.Tensor | None
    axis: int | tuple[int, ...] | None

    @property
    def is_enabled(self) -> bool:
        """Whether it quantizes."""

    @property
    def maxbound(self) -> float:
        """Largest value of the dtype; a scale per tensor is ``amax / maxbound``."""

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Return the fake-quantized values."""

    def extra_repr(self) -> str:
        """Describe the quantizer in ModelOpt's words."""

    def enable(self) -> None:
        """Quantize."""

    def disable(self) -> None:
        """Return values unchanged."""


def tensor_quantizer(attributes: QuantizerAttributes) -> Quantizer:
    """Build a ``TensorQuantizer`` outside any model.

    Source: quantization/nn/modules/tensor_quantizer.py; its attributes are validated by
    ``QuantizerAttributeConfig`` in quantization/config.py.
    """
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    settings = {key: value for key, value in attributes.modelopt().items() if key != COST_ONLY}
    return cast(Quantizer, TensorQuantizer(QuantizerAttributeConfig(**settings)))


def named_quantizers(module: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Yield every ``TensorQuantizer`` in a module (quantization/nn/modules/tensor_quantizer.py)."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    for name, child in module.named_modules():
        if isinstance(child, TensorQuantizer):
            yield name, cast(Quantizer, child)


def reduced_range(channel_amax: torch.Tensor, axis: int | tuple[int, ...] | None) -> torch.Tensor:
    """Reduce the largest magnitudes per channel to those per ``axis``, as ``max`` calibration does.

    Source: ``MaxCalibrator.collect`` in quantization/calib/max.py, which calls
    ``convert_quantization_axis_to_reduce_axis`` and ``reduce_amax`` of
    quantization/utils/core_utils.py.
    """
    from modelopt.torch.quantization.utils import (
        convert_quantization_axis_to_reduce_axis,
        reduce_amax,
    )

    reduced = convert_quantization_axis_to_reduce_axis(channel_amax, axis)
    return cast(torch.Tensor, reduce_amax(channel_amax, axis=reduced))


def validate_config(config: Mapping[str, Any]) -> None:
    """Have ``QuantizeConfig`` (quantization/config.py) validate a config; it raises ValueError."""
    from modelopt.torch.quantization.config import QuantizeConfig

    QuantizeConfig(**config)


def grouping_rules() -> Sequence[GroupingRule]:
    """Return ``quant_grouping_rules``: which linears share a format.

    Source: ``AutoQuantizeGradientSearcher`` in quantization/algorithms.py.
    """
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    return cast(Sequence[GroupingRule], AutoQuantizeGradientSearcher.quant_grouping_rules)


def score_module_rules() -> Sequence[GroupingRule]:
    """Return ``score_module_rules``: at the output of which module a linear is scored.

    Source: ``AutoQuantizeGradientSearcher`` in quantization/algorithms.py.
    """
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    return cast(Sequence[GroupingRule], AutoQuantizeGradientSearcher.score_module_rules)


def quantizes_each_expert(module: nn.Module) -> bool:
    """Whether fused experts get ``_QuantFusedExperts``, which quantizes two products per expert.

    Source: ``register_fused_experts_on_the_fly`` in quantization/plugins/huggingface.py, which
    leaves modules alone that are registered already.
    """
    from modelopt.torch.quantization.nn import QuantModuleRegistry
    from modelopt.torch.quantization.plugins import huggingface

    registered = QuantModuleRegistry.get(type(module))
    if registered is not None:
        return issubclass(registered, huggingface._QuantFusedExperts)
    return huggingface._fused_experts_wrapper_class(module) is not None


@dataclass(frozen=True, slots=True)
class SearchedGroup:
    """A layer group that ``auto_quantize`` has scored, with one of its quantized candidates.

    Source: ``QuantRecipeHparam`` and ``QuantRecipe`` in quantization/algorithms.py.
    """

    _hparam: Any
    _recipe: Any

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the members (``quant_module_names``)."""
        return tuple(self._hparam.quant_module_names)

    @property
    def score(self) -> float:
        """The raw score. ``candidate_stats`` would clamp it to the next cheaper format's."""
        return float(self._hparam.get_score(self._recipe))

    def activate(self) -> None:
        """Put the candidate's quantizers into the model (``Hparam.active`` in opt/hparam.py)."""
        self._hparam.active = self._recipe


def searched_groups(model: nn.Module) -> Iterator[SearchedGroup]:
    """Yield each group of a searched model with each candidate that quantizes it.

    Source: ``named_hparams`` in opt/utils.py.
    """
    from modelopt.torch.opt.utils import named_hparams
    from modelopt.torch.quantization.algorithms import QuantRecipe, QuantRecipeHparam

    unquantized = QuantRecipe(quant_cfg=None)
    for _, hparam in named_hparams(model, unique=True):
        if isinstance(hparam, QuantRecipeHparam):
            for recipe in hparam.choices:
                if recipe != unquantized:
                    yield SearchedGroup(hparam, recipe)


def serialized(state: Mapping[str, Any]) -> bytes:
    """Serialize a search state so that ``torch.load(weights_only=True)`` reads it.

    Source: ``safe_save`` in utils/serialization.py; plain ``torch.save`` of the state cannot be
    read with ``weights_only=True``.
    """
    from modelopt.torch.utils.serialization import safe_save

    buffer = io.BytesIO()
    safe_save(state, buffer)
    return buffer.getvalue()


def export_algorithm(model: nn.Module) -> str | None:
    """Return the ``quant_algo`` that an export of a quantized model would name, None for none.

    Source: ``get_quant_config`` in export/quant_utils.py.
    """
    from modelopt.torch.export.quant_utils import get_quant_config

    algorithm = get_quant_config(model)["quantization"].get("quant_algo")
    return None if algorithm is None else str(algorithm).upper()


def exported_linear(linear: nn.Module) -> Mapping[str, torch.Tensor]:
    """Export one quantized linear in place; return its weight and scales as a checkpoint has them.

    Source: ``_export_quantized_weight`` in export/unified_export_hf.py.
    """
    from modelopt.torch.export.unified_export_hf import _export_quantized_weight

    _export_quantized_weight(linear, cast(torch.Tensor, linear.weight).dtype)
    return {name: tensor for name, tensor in linear.state_dict().items() if "." not in name}


def list_experts(model: nn.Module, block: str) -> None:
    """List the experts of a mixture block as the export does for formats it calls AWQ; it raises.

    Source: ``get_experts_list`` in export/layer_utils.py, which
    ``requantize_resmooth_fused_llm_layers`` in export/unified_export_hf.py calls.
    """
    from modelopt.torch.export.layer_utils import get_experts_list

    get_experts_list(model.get_submodule(block), type(model).__name__.lower())


def cuda_extension_loaders() -> Mapping[str, ExtensionLoader]:
    """Return what compiles or loads each CUDA extension, by the extension's name.

    Source: the functions ``get_cuda_ext*`` in quantization/extensions.py. Each takes
    ``raise_if_failed`` and returns None where the extension cannot be built.
    """
    extensions = importlib.import_module("modelopt.torch.quantization.extensions")
    names = sorted(name for name in vars(extensions) if name.startswith("get_cuda_ext"))
    return {name.removeprefix("get_"): getattr(extensions, name) for name in names}


def has_nvfp4_kernel() -> bool:
    """Whether the Triton kernel ``fp4_fake_quant_block`` could be imported on this machine.

    Source: kernels/quantization/gemm/__init__.py, which imports it from fp4_kernel_hopper.py where
    CUDA, Triton and compute capability 8.9 are there.
    """
    kernels = importlib.import_module("modelopt.torch.kernels.quantization.gemm")
    return hasattr(kernels, "fp4_fake_quant_block")
