"""Find out as what ModelOpt exports a config, and whether a runtime would compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import skip_init

from pytest_autoquant.export.checkpoint.stored_linear import TOLERANCE, StoredLinear, largest_error
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.formats.quantizer import QuantizerAttributes, ScaleSharing
from pytest_autoquant.modelopt_support.private_api import (
    export_algorithm,
    exported_linear,
    list_experts,
)
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.layers import Architecture, Linear
from pytest_autoquant.text import in_words

#: Features of the linear that is exported to ask ModelOpt, rounded up to whole blocks.
_PROBE_WIDTH = 256


class Scaling(NamedTuple):
    """A dtype, and which values share a scale."""

    dtype: str
    shared_by: ScaleSharing


_UNQUANTIZED = Scaling("fp16", "nothing")

#: Weights and activations that a runtime computes for each algorithm that an export can name.
#: ModelOpt names the algorithm after the weights and some activations only
#: (``get_quantization_format`` in ``modelopt/torch/export/quant_utils.py``): int4 weights with int8
#: activations become W4A16_AWQ, and a runtime would not quantize those activations.
ALGORITHMS: Mapping[str, tuple[Scaling, Scaling]] = MappingProxyType(
    {
        "FP8": (Scaling("fp8", "tensor"), Scaling("fp8", "tensor")),
        "FP8_PER_CHANNEL_PER_TOKEN": (
            Scaling("fp8", "output channel"),
            Scaling("fp8", "token"),
        ),
        "W8A8_SQ_PER_CHANNEL": (Scaling("int8", "output channel"), Scaling("int8", "tensor")),
        "W8A16": (Scaling("int8", "output channel"), _UNQUANTIZED),
        "W4A16_AWQ": (Scaling("int4", "block"), _UNQUANTIZED),
        "FP8_PB_WO": (Scaling("fp8", "block"), _UNQUANTIZED),
        "MXFP8": (Scaling("fp8", "block"), Scaling("fp8", "block")),
        "MXFP4": (Scaling("fp4", "block"), Scaling("fp4", "block")),
        "NVFP4": (Scaling("nvfp4", "block"), Scaling("nvfp4", "block")),
        "W4A16_NVFP4": (Scaling("nvfp4", "block"), _UNQUANTIZED),
        "W4A8_NVFP4_FP8": (Scaling("nvfp4", "block"), Scaling("fp8", "tensor")),
        "W4A8_MXFP4_FP8": (Scaling("fp4", "block"), Scaling("fp8", "tensor")),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Export:
    """How ModelOpt exported the linear of a probe.

    Attributes:
        algorithm: what the export names, None if ModelOpt cannot quantize or export it.
        unreadable: why the stored weight is not the fake-quantized one, None if it is.
    """

    algorithm: str | None
    unreadable: str | None = None


class ExportProbe:
    """Asks ModelOpt once per config and shape, by exporting a small linear on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._exports: dict[tuple[str, tuple[int, int]], _Export] = {}

    def algorithm(self, config: EffectiveConfig) -> str | None:
        """Return the algorithm that ModelOpt's export names for a config, None without one."""
        return self._export(config).algorithm

    def problem(self, config: EffectiveConfig) -> str | None:
        """Return why an export would not be what the config asks for, None if it would be."""
        export = self._export(config)
        what = f"{config.pair.name} with {config.granularity.name}"
        if export.algorithm is None or export.algorithm not in ALGORITHMS:
            return f"ModelOpt has no export of {what} that can be verified"
        weights, activations = ALGORITHMS[export.algorithm]
        if (weights, activations) != scalings_of(config):
            return (
                f"ModelOpt exports {what} as {export.algorithm}, for which a runtime computes "
                f"{weights.dtype} weights (a scale per {weights.shared_by}) and "
                f"{activations.dtype} activations (a scale per {activations.shared_by})"
            )
        if export.unreadable is not None:
            return f"ModelOpt exports {what} as {export.algorithm}, but {export.unreadable}"
        return None

    def layer_problem(self, config: EffectiveConfig, linear: Linear) -> str | None:
        """Return why a linear of this shape cannot be exported in a format, None if it can.

        ModelOpt quantizes a width that blocks do not divide by padding it, but most of its exports
        cannot pack one, such as ``pack_int4_in_uint8`` in ``modelopt/torch/export/quant_utils.py``
        (0.47.0), which also needs an even number of outputs. A format without blocks fits all.
        """
        if not any(
            quantizer is not None and quantizer.blocks for _, quantizer in config.quantizers
        ):
            return None
        for outputs, width in _stored_shapes(linear):
            rows = outputs
            if rows > _PROBE_WIDTH and rows % 2 == 0:  # as many as tell how blocks divide them
                rows = _PROBE_WIDTH + rows % _PROBE_WIDTH
            export = self._export(config, (rows, width))
            if export.algorithm is None or export.unreadable is not None:
                return _undivided(config, width) or (
                    f"the export of {outputs} outputs and {width} inputs "
                    f"{export.unreadable or 'cannot be quantized'}"
                )
        return None

    def mixture_problem(self, config: EffectiveConfig, model: Architecture) -> str | None:
        """Return why a model with experts cannot be exported in a format, None if it can."""
        algorithm = self.algorithm(config)
        if algorithm is None or "AWQ" not in algorithm:
            return None
        names = (linear.name.rpartition(".")[0] for linear in model.linears if linear.is_fused)
        block = next(names, None)
        if block is None:
            return None
        try:
            list_experts(model.module, block)
        except Exception as error:  # whatever ModelOpt raises here, it raises in an export
            return (
                f"ModelOpt cannot export {algorithm}, which {config.pair.name} becomes, of a "
                f"mixture of experts such as {block}: {in_words(error)}"
            )
        return None

    def _export(self, config: EffectiveConfig, shape: tuple[int, int] | None = None) -> _Export:
        """Export a linear of ``(out_features, in_features)``, by default of whole blocks."""
        if shape is None:
            shape = config.padded_height(_PROBE_WIDTH), config.padded_width(_PROBE_WIDTH)
        if (config.digest, shape) not in self._exports:
            self._exports[config.digest, shape] = _export(config, shape, self._device)
        return self._exports[config.digest, shape]


def _stored_shapes(linear: Linear) -> list[tuple[int, int]]:
    """Return the shapes of the weights that an export stores.

    The first matrix of fused experts is stored as gate and up projection, see ``expert_linears``.
    """
    if not linear.is_fused:
        return [(linear.out_features, linear.in_features)]
    (_, rows, width), *others = linear.expert_shapes
    halves = [(rows // 2, width), (rows, width)]
    return [*halves, *((outputs, inputs) for _, outputs, inputs in others)]


def _undivided(config: EffectiveConfig, width: int) -> str | None:
    """Return which blocks do not divide an input width, None if all do."""
    for _, quantizer in config.quantizers:
        size = None if quantizer is None else quantizer.block_size
        if size is not None and width % size:
            return f"blocks of {size} do not divide the input width {width}"
    return None


def _export(config: EffectiveConfig, shape: tuple[int, int], device: torch.device) -> _Export:
    import modelopt.torch.quantization as mtq

    linear = _seeded_linear(shape, device)
    cfg = {"quant_cfg": config.modelopt()["quant_cfg"], "algorithm": "max"}
    try:
        with quiet():
            mtq.quantize(linear, cfg, lambda m: m(torch.ones(2, shape[1], device=device)))
            algorithm = export_algorithm(linear)
    except Exception:  # whatever ModelOpt raises here, it raises in an export
        return _Export(algorithm=None)
    if algorithm is None:
        return _Export(algorithm=None)
    return _Export(algorithm=algorithm, unreadable=_unreadable(linear[0], config.weight))


def _seeded_linear(shape: tuple[int, int], device: torch.device) -> nn.Sequential:
    """Return a linear with normal random weights; the global generators stay untouched."""
    linear = skip_init(nn.Linear, shape[1], shape[0], bias=False, device=device)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear.weight.copy_(weight)
    return nn.Sequential(linear)


def _unreadable(linear: Any, attributes: QuantizerAttributes | None) -> str | None:
    """Export a quantized linear; return why its weight cannot be read back, None if it can."""
    weight = linear.weight.detach().clone()
    try:
        with quiet(), torch.no_grad():
            expected = linear.weight_quantizer(weight)
    except Exception as error:  # whatever ModelOpt raises here, it raises in every forward pass
        return f"cannot quantize a weight here: {in_words(error)}"
    try:
        with quiet(), torch.no_grad():
            actual = _stored(linear).dequantized(tuple(weight.shape), attributes)
    except Exception as error:  # likewise: whatever it raises here, it raises in an export
        return f"fails: {in_words(error)}"
    deviation = largest_error(actual, expected, weight)
    if deviation <= TOLERANCE:
        return None
    return f"stores a weight that deviates by {deviation:.2%} from the one that is measured"


def _stored(linear: nn.Module) -> StoredLinear:
    tensors = exported_linear(linear)
    return StoredLinear(
        name="a linear",
        weight=tensors["weight"],
        scale=tensors["weight_scale"],
        scale_2=tensors.get("weight_scale_2"),
    )


def scalings_of(config: EffectiveConfig) -> tuple[Scaling, Scaling]:
    """Return what a config asks for: weights and activations."""
    pair = config.pair
    return (
        Scaling(pair.weight, config.scale_shared_by("weight")),
        Scaling(pair.activation, config.scale_shared_by("input")),
    )
