"""A quantized model as a Hugging Face checkpoint: written whole or not at all, and read back.

What ModelOpt wrote is not trusted: every linear of the language model is dequantized from the
safetensors and compared with what ModelOpt's quantizers make of the loaded weights, and everything
else must be there bit for bit.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.export.apply_scheme import Decision, applied, shared_range
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.modelopt_support.private_api import export_algorithm
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.scoring.replay.quantizers import fake_quantized

_OLD_NAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))
"""How checkpoints of Qwen2.5-VL name what transformers has renamed since."""

_PROBE_WIDTH = 256

_PROCESSOR_FILES = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("chat_template.json", "chat_template.jinja"),
)
"""Of a folder they are copied as they are: building a processor needs more than a checkpoint."""

_ROOM = 1.1
"""Of the weights' size: what must be free before an export begins."""

_CLOSE = 1e-3
"""Of the largest weight: a stored scale is rounded, so dequantized weights are near, not equal."""

Scaling = tuple[str, str]
"""A dtype, and what shares a scale."""

_PLAIN: Scaling = ("fp16", "nothing")

STANDS_FOR: Mapping[str, tuple[Scaling, Scaling]] = MappingProxyType(
    {
        "FP8": (("fp8", "tensor"), ("fp8", "tensor")),
        "FP8_PER_CHANNEL_PER_TOKEN": (("fp8", "output channel"), ("fp8", "token")),
        "W8A8_SQ_PER_CHANNEL": (("int8", "output channel"), ("int8", "tensor")),
        "W8A16": (("int8", "output channel"), _PLAIN),
        "W4A16_AWQ": (("int4", "block"), _PLAIN),
        "NVFP4": (("nvfp4", "block"), ("nvfp4", "block")),
        "W4A16_NVFP4": (("nvfp4", "block"), _PLAIN),
        "W4A8_NVFP4_FP8": (("nvfp4", "block"), ("fp8", "tensor")),
        "W4A8_MXFP4_FP8": (("fp4", "block"), ("fp8", "tensor")),
    }
)
"""What a runtime computes for an algorithm that an export names: weights and activations.

ModelOpt names it after the weights and some activations: int4 weights with int8 activations are
exported as W4A16_AWQ, and a runtime would leave those activations alone.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished checkpoint.

    Attributes:
        bytes_before: of the model's weights in memory; ``bytes_after`` of the safetensors files.
        num_quantized: linears that are stored quantized, each compared after dequantizing.
        largest_error: largest deviation of a dequantized weight from ModelOpt's fake-quantized one,
            relative to the largest weight of its linear.
        num_identical: other tensors, each compared bit for bit.
    """

    bytes_before: int
    bytes_after: int
    num_quantized: int
    largest_error: float
    num_identical: int


def export(
    model: LoadedModel,
    source: ModelSource,
    decisions: Sequence[Decision],
    batches: Sequence[Batch],
    folder: Path,
) -> Exported:
    """Quantize, export with ModelOpt and verify; the model is afterwards what it was.

    Args:
        source: where the model came from; its processor goes with the checkpoint.
        decisions: groups that no decision names stay unquantized.
        folder: an existing, empty folder on the file system that the checkpoint stays on.

    Raises:
        MeasurementError: no space, ModelOpt cannot export this, or what it wrote is not the model.
    """
    needed = sum(p.numel() * p.element_size() for p in model.module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed * _ROOM:
        raise MeasurementError(
            f"{folder}: {free / 1e9:.1f} GB are free, the export of {model.record.name} may take "
            f"{needed * _ROOM / 1e9:.1f}; free some, or give another --aq-report-dir"
        )
    with _architecture_named(model.module), applied(model, decisions, batches), quiet():
        scales = _input_scales(model, decisions)
        _export(model.module, folder)
    _save_companions(model, source, folder)
    stored = _Stored(folder)
    _check_input_scales(decisions, scales, stored)
    errors = [error for decision in decisions for error in _errors(model, decision, stored)]
    return Exported(
        bytes_before=needed,
        bytes_after=stored.num_bytes,
        num_quantized=len(errors),
        largest_error=max(errors, default=0.0),
        num_identical=_count_identical(model, decisions, stored),
    )


def exported_as(config: EffectiveConfig, device: torch.device) -> str | None:
    """Return the algorithm that ModelOpt's export names for a config, None for none.

    Found by quantizing one small linear, as it is exported.
    """
    import modelopt.torch.quantization as mtq

    probe = nn.Sequential(nn.Linear(_PROBE_WIDTH, _PROBE_WIDTH, device=device))
    cfg = {"quant_cfg": config.modelopt()["quant_cfg"], "algorithm": "max"}
    try:
        with quiet():
            mtq.quantize(probe, cfg, lambda m: m(torch.ones(2, _PROBE_WIDTH, device=device)))
            return export_algorithm(probe)
    except Exception:  # whatever ModelOpt raises here, it raises in an export
        return None


def refusal(config: EffectiveConfig, device: torch.device) -> str | None:
    """Say why a config cannot be exported as what it is, None if it can."""
    algorithm, pair = exported_as(config, device), config.pair
    what = f"{pair.name} with {config.granularity.name}"
    if algorithm is None or algorithm not in STANDS_FOR:
        return f"ModelOpt has no export for {what} that could be verified"
    weights = (pair.weight, config.scale_shared_by("weight"))
    activations = (pair.activation, config.scale_shared_by("input"))
    if STANDS_FOR[algorithm] != (weights, activations):
        (w_dtype, w_scale), (a_dtype, a_scale) = STANDS_FOR[algorithm]
        return (
            f"ModelOpt exports {what} as {algorithm}, which a runtime computes with {w_dtype} "
            f"weights (a scale per {w_scale}) and {a_dtype} activations (a scale per {a_scale})"
        )
    return None


def check_target(target: Path, *, may_replace: bool) -> None:
    """Raise MeasurementError if an export would replace what it may not."""
    if target.exists() and not may_replace:
        raise MeasurementError(
            f"{target}: exists; replace it with --aq-replace-export, or move it away"
        )


@contextmanager
def replacing(target: Path, *, may_replace: bool) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``target`` when it is complete.

    Raises:
        MeasurementError: ``target`` exists and may not be replaced, or nothing can be written
            there. What was there before stays until then.
    """
    check_target(target, may_replace=may_replace)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        filling = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        problem = error.strerror or error
        raise MeasurementError(f"{target}: cannot be written: {problem}") from error
    try:
        filling.chmod(0o755)
        yield filling
        check_target(target, may_replace=may_replace)
        _swap(filling, target)
    except OSError as error:
        problem = error.strerror or error
        raise MeasurementError(f"{target}: cannot be written: {problem}") from error
    finally:
        shutil.rmtree(filling, ignore_errors=True)


def _swap(filling: Path, target: Path) -> None:
    """Put the new folder in the place of the old one, which goes last."""
    if not target.exists():
        filling.rename(target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    target.rename(old / target.name)
    try:
        filling.rename(target)
    except OSError:
        (old / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _export(module: Any, folder: Path) -> None:
    from modelopt.torch.export import export_hf_checkpoint

    try:
        export_hf_checkpoint(module, export_dir=folder)
    except Exception as error:
        raise MeasurementError(
            f"ModelOpt cannot export this: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _save_companions(model: LoadedModel, source: ModelSource, folder: Path) -> None:
    """Save what a runtime needs beside the weights, as far as the source has it."""
    from transformers import AutoProcessor

    model.tokenizer.save_pretrained(folder)
    if getattr(model.module, "generation_config", None) is not None:
        model.module.generation_config.save_pretrained(folder)
    if model.record.weights == "random":
        return  # a rehearsal: whatever the hub has belongs to other weights
    source_folder = Path(source.location)
    if source_folder.is_dir():
        for name in _PROCESSOR_FILES:
            if (source_folder / name).is_file():
                shutil.copyfile(source_folder / name, folder / name)
        return
    with suppress(OSError, ValueError, ImportError, AttributeError):  # not every model has one
        AutoProcessor.from_pretrained(source.location).save_pretrained(folder)


@contextmanager
def _architecture_named(module: Any) -> Iterator[None]:
    """ModelOpt reads the architecture from the config, where a model built from one has none."""
    before = module.config.architectures
    module.config.architectures = [type(module).__name__]
    try:
        yield
    finally:
        module.config.architectures = before


class _Stored:
    """The tensors of a checkpoint's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        files: list[Any] = [safe_open(p, "pt") for p in sorted(folder.glob("*.safetensors"))]
        self._where = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self.num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def get(self, name: str) -> torch.Tensor | None:
        """Return a tensor by the model's name for it, None if it is not there."""
        for new, old in (("", ""), *_OLD_NAMES):
            stored = old + name[len(new) :] if name.startswith(new) else name
            if stored in self._where:
                tensor: torch.Tensor = self._where[stored].get_tensor(stored)
                return tensor
        return None


def _errors(model: LoadedModel, decision: Decision, stored: _Stored) -> Iterator[float]:
    """Yield how far each dequantized weight is from the fake-quantized one, of its range."""
    attributes, shared = decision.config.weight, shared_range(model, decision)
    for name in decision.modules:
        weight = model.module.get_submodule(name).weight.detach()
        expected = weight if attributes is None else fake_quantized(attributes, weight, shared)
        found = _dequantized(name, stored, tuple(weight.shape)).to(expected.device)
        if not found.isfinite().all():
            raise MeasurementError(
                f"the export is not the quantized model: {name} holds values that are not finite; "
                "this is a defect of the export, do not use it"
            )
        error = _largest_error(found, expected, weight)
        if not error <= _CLOSE:
            raise MeasurementError(
                f"the export is not the quantized model: {name} deviates by {error:.2%} of its "
                "largest weight; this is a defect of the export, do not use it"
            )
        yield error


def _largest_error(found: torch.Tensor, expected: torch.Tensor, weight: torch.Tensor) -> float:
    """Return the largest deviation, relative to the largest weight.

    Both are computed in the weight's dtype, so they may differ by its rounding; and a weight that
    lies between two values as near as that rounding may be stored as either.
    """
    rounding = 2 * torch.finfo(weight.dtype).eps
    weight, expected = weight.float(), expected.float()
    deviation = (found - expected).abs() - rounding * expected.abs()
    nearer = ((found - weight).abs() - (expected - weight).abs()).abs()
    wrong = deviation.where(nearer > rounding * weight.abs(), 0.0).clamp(min=0.0).max()
    return float(wrong / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def _input_scales(model: LoadedModel, decisions: Sequence[Decision]) -> dict[str, float]:
    """Return the scale of every linear whose inputs have one per tensor, before it is exported.

    A scale is the calibrated range over the largest value of the dtype (ModelOpt's ``maxbound``).
    """
    scales = {}
    for name in (name for decision in decisions for name in decision.modules):
        quantizer = model.module.get_submodule(name).input_quantizer
        amax = quantizer.amax if quantizer.is_enabled else None
        if amax is not None and amax.numel() == 1:
            scales[name] = amax.item() / quantizer.maxbound
    return scales


def _check_input_scales(
    decisions: Sequence[Decision], scales: Mapping[str, float], stored: _Stored
) -> None:
    for name in (name for decision in decisions for name in decision.modules):
        found = stored.get(f"{name}.input_scale")
        if name not in scales and found is None:
            continue
        wanted = scales.get(name, math.nan)
        if (
            found is None
            or found.numel() != 1
            or not math.isclose(found.item(), wanted, rel_tol=_CLOSE)
        ):
            told = "is missing" if found is None else f"is {found.flatten()[:3].tolist()}"
            raise MeasurementError(
                f"the export is not the quantized model: input_scale of {name} {told}, "
                f"{wanted:.6g} was calibrated; do not use it"
            )


def _dequantized(name: str, stored: _Stored, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a stored weight ``(out_features, in_features)`` in fp32.

    FP8: one scale, or one per output channel. Packed INT4: two rows to a byte, the lower half the
    first, one scale per row and block.
    """
    weight, scale = stored.get(f"{name}.weight"), stored.get(f"{name}.weight_scale")
    if weight is None or scale is None:
        raise MeasurementError(f"the export lacks weight or weight_scale of {name}")
    if weight.dtype == torch.uint8 and weight.shape[0] * 2 == shape[0]:
        halves = torch.stack([weight & 0xF, weight >> 4], dim=1).flatten(0, 1).to(torch.int8)
        values = torch.where(halves > 7, halves - 16, halves).float()
    elif tuple(weight.shape) == shape:
        values = weight.float()
    else:
        raise MeasurementError(
            f"the export stores {name} as {weight.dtype} {tuple(weight.shape)}, which this version "
            "cannot read back; give candidates in FP8 or INT4"
        )
    factors = scale.float()
    if factors.dim() == 1:
        factors = factors[:, None]
    if factors.dim() == 2 and factors.shape[1] not in (1, shape[1]):
        factors = factors.repeat_interleave(-(-shape[1] // factors.shape[1]), dim=1)[:, : shape[1]]
    return values * factors


def _count_identical(model: LoadedModel, decisions: Sequence[Decision], stored: _Stored) -> int:
    quantized = {f"{name}.weight" for decision in decisions for name in decision.modules}
    tied = set(getattr(model.module, "_tied_weights_keys", None) or ())
    count = 0
    for name, tensor in model.module.state_dict().items():
        if name in quantized:
            continue
        found = stored.get(name)
        if found is None and name in tied:
            continue
        kept = tensor.detach().cpu()
        if found is None or found.dtype != kept.dtype or not torch.equal(found, kept):
            raise MeasurementError(
                f"the export changed {name}, which is not quantized; do not use it"
            )
        count += 1
    return count
