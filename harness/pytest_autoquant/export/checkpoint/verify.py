"""Read a checkpoint back and compare it with the model that it was exported from.

What ModelOpt wrote is not trusted: every quantized linear is dequantized from the safetensors files
and compared with ModelOpt's fake-quantized weight. Everything else must be the source's bit for
bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.apply_scheme import GroupFormat, shared_range
from pytest_autoquant.export.checkpoint.expert_linears import expert_linears, fused_experts
from pytest_autoquant.export.checkpoint.stored_linear import TOLERANCE, StoredLinear, largest_error
from pytest_autoquant.export.checkpoint.tensors import CheckpointTensors
from pytest_autoquant.export.checkpoint.write import size_in_bytes
from pytest_autoquant.formats.quantizer import E4M3_MAX, QuantizerAttributes
from pytest_autoquant.models.layers import expert_matrices
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.scoring.replay.quantizers import fake_quantized

_UNEQUAL = "the export is not the quantized model"
_DISCARD = "the export is defective, do not use it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was compared.

    Attributes:
        stored_bytes: size of the safetensors files.
        source_bytes: size of the source's safetensors files; of random weights, in memory.
        num_quantized: number of linears compared after dequantizing.
        largest_error: largest deviation of a dequantized from a fake-quantized weight, relative to
            the largest weight of its linear.
        num_identical: number of other tensors, each compared bit for bit.
    """

    stored_bytes: int
    source_bytes: int
    num_quantized: int
    largest_error: float
    num_identical: int


def calibrated_input_scales(
    model: LoadedModel, formats: Sequence[GroupFormat]
) -> Mapping[str, float]:
    """Return the scale of every linear whose inputs have one per tensor; call before the export.

    A scale is the calibrated range over the largest value of the dtype: ModelOpt's ``amax`` over
    ``maxbound``, and for NVFP4 over that times the largest block scale
    (``get_activation_scaling_factor`` in ``modelopt/torch/export/quant_utils.py`` and in
    ``modelopt/torch/quantization/qtensor/nvfp4_tensor.py``).
    """
    scales, experts = {}, fused_experts(model)
    for group in formats:
        attributes = group.config.input
        if attributes is None:
            continue
        for name in group.modules:
            for stored, quantizer in _input_quantizers(name, model, experts):
                if quantizer.amax is not None and quantizer.amax.numel() == 1:
                    largest = quantizer.maxbound * (E4M3_MAX if attributes.is_nvfp4 else 1.0)
                    scales[stored] = quantizer.amax.item() / largest
    return scales


def _input_quantizers(
    name: str, model: LoadedModel, experts: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield each linear that is stored, with the quantizer of its inputs."""
    module = model.module.get_submodule(name)
    if name not in experts:
        yield name, module.input_quantizer
        return
    for linear in expert_linears(name, module):
        yield linear.name, getattr(module, f"{linear.matrix}_input_quantizer")


def verify_checkpoint(
    model: LoadedModel,
    formats: Sequence[GroupFormat],
    input_scales: Mapping[str, float],
    folder: Path,
    source: Path | None,
) -> Verification:
    """Compare a checkpoint with the model, which must be unquantized again.

    Args:
        input_scales: what ``calibrated_input_scales`` returned.
        source: folder of the checkpoint that the model was loaded from, None for random weights.

    Raises:
        ExportError: a tensor is missing or differs; the message names it.
    """
    stored = CheckpointTensors(folder)
    original = None if source is None else CheckpointTensors(source)
    for name in _stored_linears(model, formats):
        _check_input_scale(name, input_scales.get(name), stored.get(f"{name}.input_scale"))
    errors = [error for group in formats for error in _errors(model, group, stored)]
    return Verification(
        stored_bytes=stored.num_bytes,
        num_quantized=len(errors),
        largest_error=max(errors, default=0.0),
        num_identical=_count_identical(model, formats, stored, original),
        source_bytes=size_in_bytes(model) if original is None else original.num_bytes,
    )


def _modules(formats: Sequence[GroupFormat]) -> Iterator[str]:
    return (name for group in formats for name in group.modules)


def _stored_linears(model: LoadedModel, formats: Sequence[GroupFormat]) -> Iterator[str]:
    """Yield the name of every quantized linear of the export."""
    experts = fused_experts(model)
    for name in _modules(formats):
        if name in experts:
            yield from (linear.name for linear in expert_linears(name, experts[name]))
        else:
            yield name


def _linear(stored: CheckpointTensors, name: str) -> StoredLinear:
    """Return a quantized linear.

    Raises:
        ExportError: its weight or scale is missing.
    """
    weight, scale = stored.get(f"{name}.weight"), stored.get(f"{name}.weight_scale")
    if weight is None or scale is None:
        missing = "weight" if weight is None else "weight_scale"
        raise ExportError(f"{_UNEQUAL}: {missing} of {name} is missing; {_DISCARD}")
    scale_2 = stored.get(f"{name}.weight_scale_2")
    return StoredLinear(name=name, weight=weight, scale=scale, scale_2=scale_2)


def _check_input_scale(name: str, expected: float | None, stored: torch.Tensor | None) -> None:
    if expected is None and stored is None:
        return
    if expected is not None and stored is not None and _is_close(stored, expected):
        return
    actual = "is missing" if stored is None else f"is {stored.flatten()[:3].tolist()}"
    calibrated = "none" if expected is None else f"{expected:.6g}"
    raise ExportError(
        f"{_UNEQUAL}: input_scale of {name} {actual}, calibrated was {calibrated}; {_DISCARD}"
    )


def _is_close(stored: torch.Tensor, expected: float) -> bool:
    return stored.numel() == 1 and math.isclose(stored.item(), expected, rel_tol=TOLERANCE)


def _errors(model: LoadedModel, group: GroupFormat, stored: CheckpointTensors) -> Iterator[float]:
    """Yield the relative error of each linear of a group."""
    attributes = group.config.weight
    for name, weight, expected in _expected(model, group):
        actual = _linear(stored, name).dequantized(tuple(weight.shape), attributes)
        if not actual.isfinite().all():
            raise ExportError(f"{_UNEQUAL}: {name} holds values that are not finite; {_DISCARD}")
        error = largest_error(actual.to(expected.device), expected, weight)
        if not error <= TOLERANCE:
            raise ExportError(
                f"{_UNEQUAL}: {name} deviates by {error:.2%} of its largest weight; {_DISCARD}"
            )
        yield error


def _expected(
    model: LoadedModel, group: GroupFormat
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield name, weight and fake-quantized weight of each linear of a group that is stored."""
    attributes, shared = group.config.weight, shared_range(model, group)
    experts = fused_experts(model)
    for name in group.modules:
        if name not in experts:
            weight = model.module.get_submodule(name).weight.detach()
            yield name, weight, _quantized(attributes, weight, shared)
            continue
        matrices = expert_matrices(experts[name])
        for linear in expert_linears(name, experts[name]):
            whole = matrices[linear.matrix][linear.expert].detach()
            quantized = _quantized(attributes, whole, None)
            yield linear.name, whole[linear.rows], quantized[linear.rows]


def _quantized(
    attributes: QuantizerAttributes | None, weight: torch.Tensor, amax: torch.Tensor | None
) -> torch.Tensor:
    return weight if attributes is None else fake_quantized(attributes, weight, amax)


def _count_identical(
    model: LoadedModel,
    formats: Sequence[GroupFormat],
    stored: CheckpointTensors,
    source: CheckpointTensors | None,
) -> int:
    """Compare every tensor that is not quantized; a tied one may be left out.

    It must be the source's bit for bit, and the model's in the model's dtype. Without a source, or
    where the source has no tensor of that name, it must be the model's.
    """
    experts = fused_experts(model)
    fused = {f"{n}.{matrix}": n for n, each in experts.items() for matrix in expert_matrices(each)}
    modules = set(_modules(formats))
    quantized = {f"{name}.weight" for name in modules}
    quantized |= {name for name, module in fused.items() if module in modules}
    tied = set(getattr(model.module, "_tied_weights_keys", None) or ())
    count, split = 0, set[str]()
    for name, tensor in model.module.state_dict().items():
        if name in quantized:
            continue
        actual = stored.get(name)
        if actual is None and name in tied:
            continue
        original = None if source is None else source.get(name)
        if source is not None and actual is None and original is None:
            split |= _kept_parts(name, stored, source)
            continue
        if actual is None and name in fused:
            split |= _kept_experts(fused[name], experts[fused[name]], stored)
            continue
        if actual is None or not _is_kept(actual, tensor.detach().cpu(), original, source):
            raise ExportError(
                f"{_UNEQUAL}: {name}, which is not quantized, differs from the model; {_DISCARD}"
            )
        count += 1
    return count + len(split)


def _kept_experts(name: str, module: Any, stored: CheckpointTensors) -> set[str]:
    """Return the linears of unquantized fused experts, which must be the model's."""
    matrices, found = expert_matrices(module), set()
    for linear in expert_linears(name, module):
        weight, actual = linear.of(matrices).detach().cpu(), stored.get(f"{linear.name}.weight")
        if actual is None or not _is_equal(actual.to(weight.dtype), weight):
            raise ExportError(
                f"{_UNEQUAL}: {linear.name}, which is not quantized, differs from the model; "
                f"{_DISCARD}"
            )
        found.add(linear.name)
    return found


def _kept_parts(name: str, stored: CheckpointTensors, source: CheckpointTensors) -> set[str]:
    """Return the names of the source's tensors that are one in the model; all must be stored.

    transformers joins the matrices of a layer's experts when it loads a checkpoint and splits them
    when it saves one (``WeightConverter`` in ``core_model_loading.py``, 5.14.1). None of the
    module's tensors is quantized.
    """
    parts = source.names_below(name.rpartition(".")[0])
    for part in parts or (name,):
        actual, original = stored.get(part), source.get(part)
        if actual is None or original is None or not _is_identical(actual, original):
            raise ExportError(
                f"{_UNEQUAL}: {part}, which is not quantized, differs from the source; {_DISCARD}"
            )
    return set(parts)


def _is_kept(
    actual: torch.Tensor,
    loaded: torch.Tensor,
    original: torch.Tensor | None,
    source: CheckpointTensors | None,
) -> bool:
    """Whether a stored tensor is the original, and the one that was loaded from it."""
    if original is not None and original.shape == loaded.shape:
        return _is_identical(actual, original) and _is_equal(actual.to(loaded.dtype), loaded)
    if source is not None and actual.dtype == source.common_dtype:
        return _is_equal(actual.to(loaded.dtype), loaded)
    return _is_identical(actual, loaded)


def _is_identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and _is_equal(one, other)


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(torch.equal(one, other))
