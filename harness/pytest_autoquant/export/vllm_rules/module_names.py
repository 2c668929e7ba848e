"""Names of modules in vLLM: renamed, fused, and matched against patterns of exclusion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import translate

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.files import EXPORT_AGAIN, QUOTE_LENGTH, last_part
from pytest_autoquant.export.vllm_rules.architecture.known import Architecture
from pytest_autoquant.export.vllm_rules.configs import MIXED, Quantization
from pytest_autoquant.text import one_line

#: Prefix of the vision tower in vLLM.
VISION = "visual."

#: Linears that vLLM loads as one. Source: ``packed_modules_mapping`` of the models in
#: ``ARCHITECTURES``, vLLM 0.32.0. The two with experts have ``gate_up_proj`` only if their config
#: says that there are MLPs of that kind.
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}

#: A linear of one expert; all of a layer's experts are one layer in vLLM. Source: vLLM 0.32.0,
#: ``Qwen3MoeSparseMoeBlock`` in ``vllm/model_executor/models/qwen3_moe.py`` and ``RoutedExperts``
#: in ``vllm/model_executor/layers/fused_moe/routed_experts.py``.
EXPERT = re.compile(r"(.+\.experts)\.\d+\.\w+")


def fused_name(module: str) -> str:
    """Return the name of the layer that a linear is fused into; its own if it is not fused."""
    experts = EXPERT.fullmatch(module)
    if experts is not None:
        return experts[1]
    parent, _, last = module.rpartition(".")
    return f"{parent}.{FUSED[last]}" if last in FUSED else module


class DeclaredAlgorithms:
    """Which algorithm a config declares for each module, by vLLM's names and matching order.

    Source: ``is_layer_excluded`` and ``apply_vllm_mapper`` of ``ModelOptQuantConfigBase``,
    ``ModelOptMixedPrecisionConfig._resolve_quant_algo``, in vLLM 0.32.0's modelopt.py, and
    ``is_layer_skipped`` in ``vllm/model_executor/layers/quantization/utils/quant_utils.py``.
    Unlike here, a fused layer of which ``quantized_layers`` lists some shards is quantized; the
    rule ``fusion`` reports it.

    Raises:
        ExportError: an excluded module's name cannot be compiled as a pattern.
    """

    def __init__(self, quantization: Quantization, architecture: Architecture) -> None:
        self._algorithm = quantization.algorithm
        self._layers = {
            architecture.vllm_name(name): algorithm
            for name, algorithm in quantization.layers.items()
        }
        self._patterns = frozenset(
            pattern
            for excluded in quantization.excluded
            for pattern in _vllm_patterns(excluded, architecture)
        )
        self._globs = [_glob(pattern) for pattern in sorted(self._patterns)]

    def algorithm(self, module: str) -> str | None:
        """Return the algorithm of ``module``, None if it is not quantized."""
        if self._is_excluded(module):
            return None
        if self._algorithm != MIXED:
            return self._algorithm
        listed = (self._layers[n] for n in self._listed_as(module) if n in self._layers)
        return next(listed, None) or self._of_neighbours(module)

    def _listed_as(self, module: str) -> Iterator[str]:
        """Yield the names of ``quantized_layers`` that decide, the first one first."""
        yield fused_name(module)
        yield module
        if last_part(module) == "lm_head":
            yield "lm_head"

    def _of_neighbours(self, module: str) -> str | None:
        """Return what vLLM takes for experts of which none is listed, None for any other module.

        It is the algorithm of the first module beside them that is listed, a shared expert's.
        """
        layer = fused_name(module)
        parent = layer.removesuffix("experts")
        if EXPERT.fullmatch(module) is None or any(n.startswith(f"{layer}.") for n in self._layers):
            return None
        return next((a for n, a in self._layers.items() if n.startswith(parent)), None)

    def names(self, module: str) -> bool:
        """Whether the exact name of ``module`` is excluded, and not that of its fused layer."""
        layer = fused_name(module)
        return module in self._patterns and (layer == module or layer not in self._patterns)

    def _is_excluded(self, module: str) -> bool:
        """Match a shard's exact name; its fused layer also by substring and as a glob."""
        layer = fused_name(module)
        if EXPERT.fullmatch(module) is not None:
            return self._excludes_experts(layer)
        return (
            module in self._patterns
            or any(pattern in layer for pattern in self._patterns)
            or any(glob.match(layer) for glob in self._globs)
        )

    def _excludes_experts(self, layer: str) -> bool:
        """Match all experts of a layer at once: a pattern for one of them excludes every one."""
        return any(
            pattern in layer or ("experts" in pattern and layer in pattern)
            for pattern in self._patterns
        ) or any(glob.match(layer) for glob in self._globs)


def _vllm_patterns(pattern: str, architecture: Architecture) -> tuple[str, ...]:
    """Rename a pattern, after ``a.b*`` was split into ``a.b`` and ``a.b.*``.

    Source: ``apply_vllm_mapper``, which ``configure_quant_config`` in
    ``vllm/model_executor/model_loader/utils.py`` calls for every model that has a
    ``hf_to_vllm_mapper``: all of ``ARCHITECTURES`` in vLLM 0.32.0, in 0.24.0 none of text.
    """
    if len(pattern) < 2 or not pattern.endswith("*") or pattern.endswith(".*"):
        return (architecture.vllm_name(pattern),)
    stem = architecture.vllm_name(pattern[:-1])
    return stem, architecture.vllm_name(f"{pattern[:-1]}.*")


def _glob(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(translate(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ExportError(
            f"excluded module {one_line(pattern, QUOTE_LENGTH)!r} is not a valid pattern "
            f"({error}); {EXPORT_AGAIN}"
        ) from error
