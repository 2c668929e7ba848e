"""Names of modules in vLLM: renamed, fused, and matched against patterns of exclusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint_files import EXPORT_AGAIN, QUOTE_LENGTH, last_part
from pytest_autoquant.export.vllm_rules.configs import MIXED, Quantization
from pytest_autoquant.text import one_line

_QWEN3_VL = (
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)

#: How vLLM renames a checkpoint's tensors, per architecture, applied in this order. Source:
#: ``hf_to_vllm_mapper`` in vLLM 0.32's ``vllm/model_executor/models/qwen3_vl.py`` and
#: ``qwen2_5_vl.py``.
PREFIXES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Qwen3VLForConditionalGeneration": _QWEN3_VL,
    "Qwen2_5_VLForConditionalGeneration": (*_QWEN3_VL, ("model.", "language_model.model.")),
}

#: Prefix of the vision tower in vLLM.
VISION = "visual."

#: Prefixes of everything that vLLM's models of ``PREFIXES`` have.
MODEL_PARTS = ("language_model.model.", "language_model.lm_head.", VISION)

#: Linears that vLLM loads as one. Source: ``packed_modules_mapping`` in vLLM 0.32's
#: ``vllm/model_executor/models/qwen3_vl.py`` and ``qwen2_5_vl.py``.
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


def vllm_name(architecture: str, name: str) -> str:
    """Return what vLLM calls a module, tensor or pattern of a checkpoint."""
    for old, new in PREFIXES[architecture]:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def fused_name(module: str) -> str:
    """Return the name of the layer that a linear is fused into; its own if it is not fused."""
    parent, _, last = module.rpartition(".")
    return f"{parent}.{FUSED[last]}" if last in FUSED else module


class DeclaredAlgorithms:
    """Which algorithm a config declares for each module, by vLLM's names and matching order.

    Source: ``is_layer_excluded`` and ``apply_vllm_mapper`` of ``ModelOptQuantConfigBase``,
    ``ModelOptMixedPrecisionConfig._resolve_quant_algo``, in vLLM 0.32's modelopt.py.

    Raises:
        ExportError: an excluded module's name cannot be compiled as a pattern.
    """

    def __init__(self, quantization: Quantization, architecture: str) -> None:
        self._algorithm = quantization.algorithm
        self._layers = {
            vllm_name(architecture, name): algorithm
            for name, algorithm in quantization.layers.items()
        }
        self._patterns = frozenset(
            vllm_name(architecture, pattern)
            for excluded in quantization.excluded
            for pattern in _split_pattern(excluded)
        )
        self._globs = [_glob(pattern) for pattern in sorted(self._patterns)]

    def algorithm(self, module: str) -> str | None:
        """Return the algorithm of ``module``, None if it is not quantized."""
        if self._is_excluded(module):
            return None
        if self._algorithm != MIXED:
            return self._algorithm
        names = [fused_name(module), module]
        if last_part(module) == "lm_head":
            names.append("lm_head")
        return next((self._layers[name] for name in names if name in self._layers), None)

    def names(self, module: str) -> bool:
        """Whether the exact name of ``module`` is excluded."""
        return module in self._patterns

    def _is_excluded(self, module: str) -> bool:
        """Match a shard's exact name; its fused layer also by substring and as a glob."""
        layer = fused_name(module)
        return (
            module in self._patterns
            or any(pattern in layer for pattern in self._patterns)
            or any(glob.match(layer) for glob in self._globs)
        )


def _split_pattern(pattern: str) -> tuple[str, ...]:
    """Split ``a.b*`` into ``a.b`` and ``a.b.*``, as vLLM does before it renames prefixes."""
    if len(pattern) >= 2 and pattern.endswith("*") and not pattern.endswith(".*"):
        return (pattern[:-1], f"{pattern[:-1]}.*")
    return (pattern,)


def _glob(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(translate(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ExportError(
            f"excluded module {one_line(pattern, QUOTE_LENGTH)!r} is not a valid pattern "
            f"({error}); {EXPORT_AGAIN}"
        ) from error
