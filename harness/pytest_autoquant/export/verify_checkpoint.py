"""Read a checkpoint back and compare it with the model that it was exported from.

What ModelOpt wrote is not trusted: every quantized linear is dequantized from the safetensors files
and compared with ModelOpt's fake-quantized weight. Everything else must be equal bit for bit.
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
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.scoring.replay.quantizers import fake_quantized

#: Current and older prefix of a tensor's name. transformers 5 renamed modules of Qwen2.5-VL and
#: still saves checkpoints under the older names.
_OLD_PREFIXES = (("model.language_model.", "model."), ("model.visual.", "visual."))

#: Largest accepted deviation, relative to the largest weight of the linear or to a scale: stored
#: scales are rounded.
_TOLERANCE = 1e-3

_UNEQUAL = "the export is not the quantized model"
_DISCARD = "the export is defective, do not use it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was compared.

    Attributes:
        stored_bytes: size of the safetensors files.
        num_quantized: number of linears compared after dequantizing.
        largest_error: largest deviation of a dequantized from a fake-quantized weight, relative to
            the largest weight of its linear.
        num_identical: number of other tensors, each compared bit for bit.
    """

    stored_bytes: int
    num_quantized: int
    largest_error: float
    num_identical: int


def calibrated_input_scales(
    model: LoadedModel, formats: Sequence[GroupFormat]
) -> Mapping[str, float]:
    """Return the scale of every linear whose inputs have one per tensor; call before the export.

    A scale is the calibrated range over the largest value of the dtype: ModelOpt's ``amax`` over
    ``maxbound`` (``get_activation_scaling_factor`` in ``modelopt/torch/export/quant_utils.py``).
    """
    scales = {}
    for name in _modules(formats):
        quantizer = model.module.get_submodule(name).input_quantizer
        amax = quantizer.amax if quantizer.is_enabled else None
        if amax is not None and amax.numel() == 1:
            scales[name] = amax.item() / quantizer.maxbound
    return scales


def verify_checkpoint(
    model: LoadedModel,
    formats: Sequence[GroupFormat],
    input_scales: Mapping[str, float],
    folder: Path,
) -> Verification:
    """Compare a checkpoint with the model, which must be unquantized again.

    Args:
        input_scales: what ``calibrated_input_scales`` returned.

    Raises:
        ExportError: a tensor is missing or differs; the message names it.
    """
    stored = _StoredTensors(folder)
    for name in _modules(formats):
        _check_input_scale(name, input_scales.get(name), stored.get(f"{name}.input_scale"))
    errors = [error for group in formats for error in _errors(model, group, stored)]
    return Verification(
        stored_bytes=stored.num_bytes,
        num_quantized=len(errors),
        largest_error=max(errors, default=0.0),
        num_identical=_count_identical(model, formats, stored),
    )


def _modules(formats: Sequence[GroupFormat]) -> Iterator[str]:
    return (name for group in formats for name in group.modules)


class _StoredTensors:
    """The tensors of a checkpoint's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        paths = sorted(folder.glob("*.safetensors"))
        files: list[Any] = [safe_open(path, "pt") for path in paths]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self.num_bytes = sum(path.stat().st_size for path in paths)

    def get(self, name: str) -> torch.Tensor | None:
        """Return a tensor by its name in the model, None if it is not stored."""
        for stored in _stored_names(name):
            if stored in self._file_of:
                tensor: torch.Tensor = self._file_of[stored].get_tensor(stored)
                return tensor
        return None


def _stored_names(name: str) -> Iterator[str]:
    yield name
    for new, old in _OLD_PREFIXES:
        if name.startswith(new):
            yield old + name.removeprefix(new)


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
    return stored.numel() == 1 and math.isclose(stored.item(), expected, rel_tol=_TOLERANCE)


def _errors(model: LoadedModel, group: GroupFormat, stored: _StoredTensors) -> Iterator[float]:
    """Yield the relative error of each linear of a group."""
    attributes, shared = group.config.weight, shared_range(model, group)
    for name in group.modules:
        weight = model.module.get_submodule(name).weight.detach()
        expected = weight if attributes is None else fake_quantized(attributes, weight, shared)
        actual = _dequantized(name, stored, tuple(weight.shape)).to(expected.device)
        if not actual.isfinite().all():
            raise ExportError(f"{_UNEQUAL}: {name} holds values that are not finite; {_DISCARD}")
        error = _largest_error(actual, expected, weight)
        if not error <= _TOLERANCE:
            raise ExportError(
                f"{_UNEQUAL}: {name} deviates by {error:.2%} of its largest weight; {_DISCARD}"
            )
        yield error


def _largest_error(actual: torch.Tensor, expected: torch.Tensor, weight: torch.Tensor) -> float:
    """Return the largest deviation, relative to the largest weight.

    Both are computed in the weight's dtype, so they may differ by its rounding. A weight that lies
    halfway between two values, up to that rounding, may be stored as either.
    """
    rounding = 2 * torch.finfo(weight.dtype).eps
    weight, expected = weight.float(), expected.float()
    deviation = (actual - expected).abs() - rounding * expected.abs()
    nearer = ((actual - weight).abs() - (expected - weight).abs()).abs()
    wrong = deviation.where(nearer > rounding * weight.abs(), 0.0).clamp(min=0.0).max()
    return float(wrong / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def _dequantized(name: str, stored: _StoredTensors, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a stored weight, ``(out_features, in_features)``, in fp32."""
    weight, scale = stored.get(f"{name}.weight"), stored.get(f"{name}.weight_scale")
    if weight is None or scale is None:
        missing = "weight" if weight is None else "weight_scale"
        raise ExportError(f"{_UNEQUAL}: {missing} of {name} is missing; {_DISCARD}")
    if weight.dtype == torch.uint8 and weight.shape[0] * 2 == shape[0]:
        return _unpacked_int4(weight) * _factors(scale, shape)
    if tuple(weight.shape) == shape:
        return weight.float() * _factors(scale, shape)
    raise ExportError(
        f"the export stores {name} as {weight.dtype} {tuple(weight.shape)}, which cannot be read "
        "back; give candidates in FP8, INT8 or INT4"
    )


def _unpacked_int4(packed: torch.Tensor) -> torch.Tensor:
    """Unpack two rows per byte, the first in the lower four bits, as signed integers in fp32.

    Source: ``pack_int4_in_uint8`` in ``modelopt/torch/export/quant_utils.py``.
    """
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=1).flatten(0, 1).to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles).float()


def _factors(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a scale so that it multiplies a weight of ``shape``.

    Scales have shape ``()``, ``(out_features,)`` or ``(out_features, blocks)``; the last block of a
    row may be cut.
    """
    factors = scale.float()
    if factors.dim() == 1:
        return factors[:, None]
    if factors.dim() == 2 and factors.shape[1] not in (1, shape[1]):
        width = -(-shape[1] // factors.shape[1])
        return factors.repeat_interleave(width, dim=1)[:, : shape[1]]
    return factors


def _count_identical(
    model: LoadedModel, formats: Sequence[GroupFormat], stored: _StoredTensors
) -> int:
    """Compare every tensor that is not quantized, bit for bit; a tied one may be left out."""
    quantized = {f"{name}.weight" for name in _modules(formats)}
    tied = set(getattr(model.module, "_tied_weights_keys", None) or ())
    count = 0
    for name, tensor in model.module.state_dict().items():
        if name in quantized:
            continue
        actual, expected = stored.get(name), tensor.detach().cpu()
        if actual is None and name in tied:
            continue
        if actual is None or actual.dtype != expected.dtype or not torch.equal(actual, expected):
            raise ExportError(
                f"{_UNEQUAL}: {name}, which is not quantized, differs from the model; {_DISCARD}"
            )
        count += 1
    return count
