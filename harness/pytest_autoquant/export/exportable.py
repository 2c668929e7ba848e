"""Find out as what ModelOpt exports a config, and whether a runtime would compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.formats.quantizer import ScaleSharing
from pytest_autoquant.modelopt_support.private_api import export_algorithm
from pytest_autoquant.modelopt_support.quiet import quiet

#: Features of the linear that is quantized to ask ModelOpt: a multiple of every block size.
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
        "NVFP4": (Scaling("nvfp4", "block"), Scaling("nvfp4", "block")),
        "W4A16_NVFP4": (Scaling("nvfp4", "block"), _UNQUANTIZED),
        "W4A8_NVFP4_FP8": (Scaling("nvfp4", "block"), Scaling("fp8", "tensor")),
        "W4A8_MXFP4_FP8": (Scaling("fp4", "block"), Scaling("fp8", "tensor")),
    }
)


class ExportProbe:
    """Asks ModelOpt once per effective config, by quantizing a small linear on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._algorithms: dict[str, str | None] = {}

    def algorithm(self, config: EffectiveConfig) -> str | None:
        """Return the algorithm that ModelOpt's export names for a config, None without one."""
        if config.digest not in self._algorithms:
            self._algorithms[config.digest] = _exported_algorithm(config, self._device)
        return self._algorithms[config.digest]

    def problem(self, config: EffectiveConfig) -> str | None:
        """Return why an export would not be what the config asks for, None if it would be."""
        algorithm = self.algorithm(config)
        what = f"{config.pair.name} with {config.granularity.name}"
        if algorithm is None or algorithm not in ALGORITHMS:
            return f"ModelOpt has no export of {what} that can be verified"
        weights, activations = ALGORITHMS[algorithm]
        if (weights, activations) == scalings_of(config):
            return None
        return (
            f"ModelOpt exports {what} as {algorithm}, for which a runtime computes {weights.dtype} "
            f"weights (a scale per {weights.shared_by}) and {activations.dtype} activations "
            f"(a scale per {activations.shared_by})"
        )


def _exported_algorithm(config: EffectiveConfig, device: torch.device) -> str | None:
    import modelopt.torch.quantization as mtq

    linear = nn.Sequential(nn.Linear(_PROBE_WIDTH, _PROBE_WIDTH, device=device))
    cfg = {"quant_cfg": config.modelopt()["quant_cfg"], "algorithm": "max"}
    try:
        with quiet():
            mtq.quantize(linear, cfg, lambda m: m(torch.ones(2, _PROBE_WIDTH, device=device)))
            return export_algorithm(linear)
    except Exception:  # whatever ModelOpt raises here, it raises in an export
        return None


def scalings_of(config: EffectiveConfig) -> tuple[Scaling, Scaling]:
    """Return what a config asks for: weights and activations."""
    pair = config.pair
    return (
        Scaling(pair.weight, config.scale_shared_by("weight")),
        Scaling(pair.activation, config.scale_shared_by("input")),
    )
