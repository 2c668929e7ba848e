"""Apply a scheme to a model: ModelOpt quantizes each layer group to its format, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.layers import expert_matrices
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.next_token import next_token_logits
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.scoring.replay import quantizers

_DISABLE_ALL = {"quantizer_name": "*", "enable": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFormat:
    """The format of a layer group that a scheme quantizes.

    Attributes:
        modules: names of the group's linears, in module order.
    """

    modules: tuple[str, ...]
    config: EffectiveConfig


@contextmanager
def applied(
    model: LoadedModel, formats: Sequence[GroupFormat], batches: Sequence[Batch]
) -> Iterator[None]:
    """Quantize layer groups with ModelOpt, calibrated on ``batches``; restore the model at the end.

    Linears of a group whose format has one range per linear share it, because runtimes fuse them:
    ModelOpt's export widens their ranges to the largest (``preprocess_linear_fusion`` in
    ``modelopt/torch/export/quant_utils.py``). Groups without a format stay unquantized.

    Raises:
        MeasurementError: a format needs another calibration than ``max``, which would change
            weights.
    """

    def forward_loop(module: Any) -> None:
        with torch.no_grad():
            for batch in batches:
                next_token_logits(module, model.tensor(batch))

    with preserved(model.module), quiet():
        if formats:
            import modelopt.torch.quantization as mtq

            config = explicit_config(formats, _matrices_of_experts(model))
            mtq.quantize(model.module, config, forward_loop)
            for group in formats:
                _share_range(model, group)
        yield


def shared_range(model: LoadedModel, group: GroupFormat) -> torch.Tensor | None:
    """Return the range that a group's linears share in its format, see ``quantizers``.

    Fused experts share none: each has its own, the same for its gate and up projection.
    """
    if not _matrices_of_experts(model).keys().isdisjoint(group.modules):
        return None
    weights = [model.module.get_submodule(name).weight.detach() for name in group.modules]
    return quantizers.shared_range(group.config.weight, weights)


def _share_range(model: LoadedModel, group: GroupFormat) -> None:
    largest = shared_range(model, group)
    if largest is not None:
        for name in group.modules:
            model.module.get_submodule(name).weight_quantizer.amax = largest


def _matrices_of_experts(model: LoadedModel) -> dict[str, tuple[str, ...]]:
    """Return the names of the matrices of fused experts, by the experts' name."""
    modules = {x.name: model.module.get_submodule(x.name) for x in model.linears if x.is_fused}
    return {name: tuple(expert_matrices(module)) for name, module in modules.items()}


def explicit_config(
    formats: Sequence[GroupFormat], experts: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, Any]:
    """Return a ModelOpt config with one entry per quantizer and no pattern except the first.

    Of fused experts there is an entry per matrix, for the weights of all experts or their inputs.

    Args:
        experts: by fused experts, the names of their matrices.

    Raises:
        MeasurementError: a format needs another calibration than ``max``.
    """
    entries: list[dict[str, Any]] = [dict(_DISABLE_ALL)]
    for group in formats:
        _check_calibration(group.config)
        for pattern, attributes in group.config.quantizers:
            if attributes is not None:
                entries += [
                    {"quantizer_name": f"{name}{pattern[1:]}", "cfg": attributes.modelopt()}
                    for module in group.modules
                    for name in _quantizer_prefixes(module, experts)
                ]
    return {"quant_cfg": entries, "algorithm": "max"}


def _quantizer_prefixes(name: str, experts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what comes before the name of a quantizer of a linear, or of fused experts."""
    if name not in experts:
        return [f"{name}."]
    return [f"{name}.{matrix}_" for matrix in experts[name]]


def _check_calibration(config: EffectiveConfig) -> None:
    if config.algorithm not in (None, "max"):
        raise MeasurementError(
            f"{config.pair.name} calibrates with {config.algorithm}, which a scheme cannot apply; "
            "give candidates that calibrate with max"
        )
