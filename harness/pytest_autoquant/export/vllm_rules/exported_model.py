"""An exported checkpoint as the rules see it: architecture, configs, tensors, linears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint_files import (
    QUOTE_LENGTH,
    Tensor,
    read_object,
    read_tensors,
    succeeds,
)
from pytest_autoquant.export.vllm_rules.configs import (
    CONFIG,
    Quantization,
    read_quantizations,
)
from pytest_autoquant.export.vllm_rules.module_names import (
    PREFIXES,
    VISION,
    DeclaredAlgorithms,
    fused_name,
    vllm_name,
)
from pytest_autoquant.text import one_line

#: Last part of the names of a linear's scales, in the order of reports.
LINEAR_SCALES = ("weight_scale", "weight_scale_2", "weight_scale_inv", "input_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear of the language model.

    Attributes:
        name: name in the checkpoint.
        layer: name of vLLM's layer, which fuses q, k and v, and gate and up.
        algorithm: what the config declares, None if the linear is not to be quantized.
        is_excluded_by_name: whether the config excludes exactly this name.
        scales: its scale tensors by the last part of their names.
    """

    name: str
    layer: str
    algorithm: str | None
    is_excluded_by_name: bool
    weight: Tensor
    scales: Mapping[str, Tensor]

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint stores it quantized, whatever the config declares."""
        return bool(self.scales) or self.weight.is_quantized_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """An exported checkpoint.

    Attributes:
        quantizations: what ``config.json`` and ``hf_quant_config.json`` declare, in this order;
            empty if nothing is quantized.
        tensors: tensors by name.
    """

    architecture: str
    quantizations: tuple[Quantization, ...]
    tensors: Mapping[str, Tensor]

    @property
    def quantization(self) -> Quantization | None:
        """The declaration that vLLM uses, None if nothing is quantized."""
        return next(iter(self.quantizations), None)

    def vllm_name(self, name: str) -> str:
        """Return what vLLM calls a module, tensor or pattern of this checkpoint."""
        return vllm_name(self.architecture, name)

    def linears(self) -> Iterator[Linear]:
        """Yield every linear of the language model, in name order."""
        declared = None
        if self.quantization is not None:
            declared = DeclaredAlgorithms(self.quantization, self.architecture)
        for tensor in self.language_tensors():
            if _is_linear_weight(tensor):
                module = self.vllm_name(tensor.name).removesuffix(".weight")
                yield Linear(
                    name=tensor.module,
                    layer=fused_name(module),
                    algorithm=None if declared is None else declared.algorithm(module),
                    is_excluded_by_name=declared is not None and declared.names(module),
                    weight=tensor,
                    scales=self._scales(tensor.module),
                )

    def language_tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of the language model and its output layer, in name order."""
        return self._tensors_under("language_model.")

    def vision_tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of the vision tower, in name order."""
        return self._tensors_under(VISION)

    def _tensors_under(self, prefix: str) -> Iterator[Tensor]:
        for name in sorted(self.tensors):
            if self.vllm_name(name).startswith(prefix):
                yield self.tensors[name]

    def _scales(self, module: str) -> Mapping[str, Tensor]:
        named = ((kind, self.tensors.get(f"{module}.{kind}")) for kind in LINEAR_SCALES)
        return {kind: tensor for kind, tensor in named if tensor is not None}


def read_export(folder: Path) -> ExportedModel:
    """Read the configs, the safetensors headers and the FP32 scales of an export.

    Raises:
        ExportError: the folder holds no readable export, or one of an architecture without a
            name mapping.
    """
    if not succeeds(folder.is_dir):
        raise ExportError(f"{folder}: no such folder; give one that holds an exported checkpoint")
    config = read_object(folder / CONFIG)
    return ExportedModel(
        architecture=_architecture(config, folder / CONFIG),
        quantizations=read_quantizations(config, folder),
        tensors=read_tensors(folder),
    )


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in PREFIXES:
        raise ExportError(
            f"{path}: no vLLM name mapping for architecture {one_line(repr(name), QUOTE_LENGTH)}; "
            f"supported: {', '.join(PREFIXES)}"
        )
    return name


def _is_linear_weight(tensor: Tensor) -> bool:
    is_embedding = tensor.module.endswith("embed_tokens")
    return tensor.kind == "weight" and len(tensor.shape) == 2 and not is_embedding
