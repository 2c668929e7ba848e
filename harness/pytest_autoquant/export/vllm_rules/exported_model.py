"""An exported checkpoint as the rules see it: architecture, configs, tensors, linears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.files import (
    QUOTE_LENGTH,
    Tensor,
    read_object,
    read_tensors,
    succeeds,
)
from pytest_autoquant.export.vllm_rules.architecture.config_numbers import ConfigNumbers
from pytest_autoquant.export.vllm_rules.architecture.known import ARCHITECTURES, Architecture
from pytest_autoquant.export.vllm_rules.architecture.parameter import Parameter
from pytest_autoquant.export.vllm_rules.configs import (
    ALGORITHMS,
    CONFIG,
    MIXED,
    Quantization,
    read_quantizations,
)
from pytest_autoquant.export.vllm_rules.module_names import (
    EXPERT,
    VISION,
    DeclaredAlgorithms,
    fused_name,
)
from pytest_autoquant.text import one_line

#: Last part of the names of a linear's scales, in the order of reports.
LINEAR_SCALES = ("weight_scale", "weight_scale_2", "weight_scale_inv", "input_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear of the language model that the checkpoint holds.

    Attributes:
        name: name in the checkpoint.
        layer: name of vLLM's layer, which fuses q, k and v, gate and up, and a layer's experts.
        is_expert: whether it belongs to one of several experts.
        algorithm: what the config declares, None if the linear is not to be quantized.
        is_excluded_by_name: whether the config excludes exactly this name.
        shape: ``(out_features, in_features)``, as the architecture says.
        scales: its scale tensors by the last part of their names.
    """

    name: str
    layer: str
    is_expert: bool
    algorithm: str | None
    is_excluded_by_name: bool
    shape: tuple[int, ...]
    weight: Tensor
    scales: Mapping[str, Tensor]

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint stores it quantized, whatever the config declares."""
        return bool(self.scales) or self.weight.is_quantized_weight


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """An exported checkpoint.

    Attributes:
        class_name: what ``config.json`` names under ``architectures``, None if nothing.
        dtype: of the unquantized tensors, as ``config.json`` says, None if it does not.
        quantizations: what ``config.json`` and ``hf_quant_config.json`` declare, in this order;
            empty if nothing is quantized.
        tensors: tensors by name.
        expected: what the architecture has, by vLLM's names; empty for an unknown one.
        source: folder of the checkpoint that was quantized, None if it is not known.
    """

    folder: Path
    class_name: str | None
    dtype: str | None
    quantizations: tuple[Quantization, ...]
    tensors: Mapping[str, Tensor]
    expected: Mapping[str, Parameter]
    source: Path | None

    @property
    def quantization(self) -> Quantization | None:
        """The declaration that vLLM uses, None if nothing is quantized."""
        return next(iter(self.quantizations), None)

    @property
    def is_known(self) -> bool:
        """Whether the architecture's tensors and its names in vLLM are known."""
        return self.class_name in ARCHITECTURES

    @property
    def architecture(self) -> Architecture:
        """The architecture, which must be known."""
        return ARCHITECTURES[self.class_name or ""]

    @property
    def is_declared(self) -> bool:
        """Whether the config says which algorithm each linear has.

        Otherwise the rule ``algorithm`` reports the config, and nothing follows for linears.
        """
        quantization = self.quantization
        if quantization is None:
            return True
        is_empty = quantization.algorithm == MIXED and not quantization.layers
        return quantization.algorithm in ALGORITHMS and not is_empty

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Every linear of the language model whose weight is there, in name order."""
        names = {self.vllm_name(name): name for name in self.tensors}
        expected = (
            (self.tensors[names[name]], parameter)
            for name, parameter in self.expected.items()
            if parameter.is_linear and name in names
        )
        return tuple(sorted((self._linear(*pair) for pair in expected), key=lambda one: one.name))

    def _linear(self, weight: Tensor, parameter: Parameter) -> Linear:
        module = self.vllm_name(weight.name).removesuffix(".weight")
        is_expert = EXPERT.fullmatch(module) is not None
        return Linear(
            name=weight.module,
            layer=fused_name(module),
            is_expert=is_expert,
            algorithm=self.declared_algorithm(module),
            is_excluded_by_name=not is_expert and self._excludes_name(module),
            shape=parameter.shape,
            weight=weight,
            scales=self._scales(weight.module),
        )

    def vllm_name(self, name: str) -> str:
        """Return what vLLM calls a module, tensor or pattern of this checkpoint."""
        return self.architecture.vllm_name(name)

    def declared_algorithm(self, module: str) -> str | None:
        """Return the algorithm that the config declares for a module of vLLM's."""
        return None if self._declared is None else self._declared.algorithm(module)

    def language_tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of the language model and its output layer, in name order."""
        return (tensor for tensor in self._in_order() if not self._is_vision(tensor))

    def vision_tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of the vision tower, in name order."""
        return filter(self._is_vision, self._in_order())

    @cached_property
    def _declared(self) -> DeclaredAlgorithms | None:
        if self.quantization is None:
            return None
        return DeclaredAlgorithms(self.quantization, self.architecture)

    def _excludes_name(self, module: str) -> bool:
        return self._declared is not None and self._declared.names(module)

    def _in_order(self) -> Iterator[Tensor]:
        return (self.tensors[name] for name in sorted(self.tensors))

    def _is_vision(self, tensor: Tensor) -> bool:
        return self.is_known and self.vllm_name(tensor.name).startswith(VISION)

    def _scales(self, module: str) -> Mapping[str, Tensor]:
        named = ((kind, self.tensors.get(f"{module}.{kind}")) for kind in LINEAR_SCALES)
        return {kind: tensor for kind, tensor in named if tensor is not None}


def read_export(folder: Path, *, source: Path | None = None) -> ExportedModel:
    """Read the configs and the tensors of an export.

    Args:
        source: folder of the checkpoint that was quantized, to compare files with.

    Raises:
        ExportError: the folder holds no readable export, or the config lacks a number of its
            architecture.
    """
    for place, wanted in ((folder, "an exported checkpoint"), (source, "the source checkpoint")):
        if place is not None and not succeeds(place.is_dir):
            raise ExportError(f"{place}: no such folder; give one that holds {wanted}")
    config = read_object(folder / CONFIG)
    class_name, tensors = _class_name(config), read_tensors(folder)
    dtype = config.get("dtype", config.get("torch_dtype"))
    return ExportedModel(
        folder=folder,
        class_name=class_name,
        dtype=dtype if isinstance(dtype, str) else None,
        quantizations=read_quantizations(config, folder),
        tensors=tensors,
        expected=_expected(class_name, ConfigNumbers(raw=config, path=folder / CONFIG), tensors),
        source=source,
    )


def _class_name(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return one_line(name, QUOTE_LENGTH) if isinstance(name, str) else None


def _expected(
    class_name: str | None, config: ConfigNumbers, tensors: Mapping[str, Tensor]
) -> Mapping[str, Parameter]:
    """Return the tensors of a known architecture by vLLM's names."""
    architecture = ARCHITECTURES.get(class_name or "")
    if architecture is None:
        return MappingProxyType({})
    return {
        architecture.vllm_name(parameter.name): parameter
        for parameter in architecture.parameters(config, tensors)
    }
