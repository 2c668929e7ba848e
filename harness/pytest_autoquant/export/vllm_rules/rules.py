"""The rules: one function each, applied to an export that was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_autoquant.export.checkpoint.files import QUOTE_LENGTH, Tensor, last_part
from pytest_autoquant.export.vllm_rules.configs import (
    ALGORITHMS,
    CONFIG,
    MIXED,
    MIXED_SINCE,
    Quantization,
)
from pytest_autoquant.export.vllm_rules.exported_model import ExportedModel, read_export
from pytest_autoquant.export.vllm_rules.files import files
from pytest_autoquant.export.vllm_rules.fusion import fusion, shared_scales
from pytest_autoquant.export.vllm_rules.problem import Problem, records
from pytest_autoquant.export.vllm_rules.scales import scale_problems, single_scale_problems
from pytest_autoquant.export.vllm_rules.stored_formats import STORED_FORMATS
from pytest_autoquant.export.vllm_rules.tensors import tensor_set, unquantized, values
from pytest_autoquant.manifests.records.scheme_manifest import ViolationRecord
from pytest_autoquant.text import one_line

_KV_SCALES = {"k_proj": "k_scale", "v_proj": "v_scale"}


def _configs(export: ExportedModel) -> Iterator[Problem]:
    """Both configs declare the same: vLLM reads one of them, other programs the other.

    Source: ``ModelOptQuantConfigBase.from_config``, which reads either form. Stricter than vLLM,
    which never compares the two.
    """
    if len(export.quantizations) < 2:
        return
    first, second = export.quantizations
    for key, one, other in (
        ("quant_algo", first.algorithm, second.algorithm),
        ("kv_cache_quant_algo", first.kv_cache, second.kv_cache),
        ("exclude_modules", frozenset(first.excluded), frozenset(second.excluded)),
        ("quantized_layers", frozenset(first.layers.items()), frozenset(second.layers.items())),
        *_both_group_sizes(first, second),
    ):
        if one != other:
            yield Problem(
                tensor=key,
                text=f"is {_difference(one, other)} in {first.source} and "
                f"{_difference(other, one)} in {second.source}",
            )


def _both_group_sizes(
    first: Quantization, second: Quantization
) -> Iterator[tuple[str, frozenset[int], frozenset[int]]]:
    """Yield the sizes of blocks if both configs declare some; ModelOpt writes MXFP8's into one."""
    if first.group_sizes and second.group_sizes:
        yield "group_size", first.group_sizes, second.group_sizes


def _difference(one: object, other: object) -> str:
    """Show a value; of a set, the elements that the other set lacks."""
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return one_line(sorted(one - other) or "nothing more", QUOTE_LENGTH)
    return one_line(repr(one), QUOTE_LENGTH)


def _algorithm(export: ExportedModel) -> Iterator[Problem]:
    """The method and the algorithms are known to vLLM's ModelOpt loader.

    Source: ``QUANT_ALGOS``, ``_extract_modelopt_quant_algo`` and
    ``ModelOptMixedPrecisionConfig._from_config``. In MIXED_PRECISION vLLM leaves a layer of an
    algorithm that it does not know unquantized, and so has no parameters for the layer's scales
    (``get_quant_method``). Stricter: its ``B12X_BLOCK_CODECS`` are not known here.
    """
    quantization = export.quantization
    if quantization is None:
        return
    yield from _method_problems(quantization)
    if quantization.algorithm not in ALGORITHMS:
        text = f"is {quantization.algorithm!r}; vLLM loads {', '.join(ALGORITHMS)}"
        yield Problem(tensor="quant_algo", text=text)
    if quantization.algorithm == MIXED:
        yield from _mixed_problems(quantization)
    yield from _group_size_problems(quantization)


def _method_problems(quantization: Quantization) -> Iterator[Problem]:
    method = quantization.method
    if quantization.source == CONFIG and not (method or "").lower().startswith("modelopt"):
        text = f"is {method!r}; vLLM needs one that begins with 'modelopt'"
        yield Problem(tensor="quant_method", text=text)


def _mixed_problems(quantization: Quantization) -> Iterator[Problem]:
    if not quantization.layers:
        text = f"names no layer; {MIXED} needs the algorithm of each layer"
        yield Problem(tensor="quantized_layers", text=text)
    for name, algorithm in sorted(quantization.layers.items()):
        if algorithm not in STORED_FORMATS:
            text = f"is {algorithm!r}; in {MIXED} vLLM loads {', '.join(STORED_FORMATS)}"
            yield Problem(tensor=f"{name}.weight", text=text)
        elif algorithm in MIXED_SINCE:
            text = (
                f"is {algorithm!r}, which vLLM loads in {MIXED} since {MIXED_SINCE[algorithm]} only"
            )
            yield Problem(tensor=f"{name}.weight", text=text, is_tolerated=True)


def _group_size_problems(quantization: Quantization) -> Iterator[Problem]:
    """Yield a declared size of blocks that vLLM does not compute.

    Source: ``kNvfp4Static`` in ``vllm/model_executor/layers/quantization/utils/quant_utils.py``,
    ``KFp8Block128`` and ``MXFP8_BLOCK_SIZE``. vLLM takes NVFP4's size for the shape of the scales
    without a check, but its kernels have 16 built in.
    """
    declared = {quantization.algorithm, *quantization.layers.values()}
    blocks = {
        name: format.block[1]
        for name, format in STORED_FORMATS.items()
        if name in declared and format.block[1] > 1
    }
    for size in sorted(quantization.group_sizes - set(blocks.values())) if blocks else ():
        known = ", ".join(f"{name} in blocks of {block}" for name, block in blocks.items())
        yield Problem(tensor="group_size", text=f"is {size}; vLLM computes {known}")


def _exclusion(export: ExportedModel) -> Iterator[Problem]:
    """A linear has scales exactly when the config declares it quantized.

    Source: ``ModelOptQuantConfigBase.get_quant_method``: an excluded linear has no parameters for
    scales; those of any other stay unset if the checkpoint lacks them. Only a missing
    ``weight_scale`` of NVFP4 is refused (``KNvfp4Static.process``, since 0.30).
    """
    for linear in export.linears if export.is_declared else ():
        if linear.algorithm is None and linear.is_quantized:
            stored = ", ".join((linear.weight.dtype, *linear.scales))
            text = f"is quantized ({stored}), but {_why_unquantized(export)}"
            yield Problem(tensor=linear.weight.name, text=text)
        elif linear.algorithm is not None and "weight_scale" not in linear.scales:
            yield Problem(
                tensor=f"{linear.name}.weight_scale",
                text=f"is missing: the weight is {linear.weight.dtype}, and the config declares "
                f"{linear.algorithm}",
            )


def _why_unquantized(export: ExportedModel) -> str:
    if export.quantization is None:
        return "neither config declares a quantization"
    if export.quantization.algorithm == MIXED:
        return "quantized_layers does not name it or a pattern excludes it"
    return "the config excludes it"


def _scales(export: ExportedModel) -> Iterator[Problem]:
    """Weight and scales have the dtypes, shapes and values of the declared algorithm.

    Source: the classes of ``SCHEME_FOR``, see ``vllm_rules/stored_formats.py``.
    """
    for linear in export.linears if export.is_declared else ():
        if linear.algorithm in STORED_FORMATS and linear.is_quantized:
            yield from scale_problems(linear)


def _kv_cache(export: ExportedModel) -> Iterator[Problem]:
    """A quantized KV cache is FP8, with one scale for keys and one for values per attention.

    Source: vLLM 0.32.0, ``get_kv_cache_quant_algo_string`` in ``vllm/utils/torch_utils.py`` and
    ``BaseKVCacheMethod`` in ``vllm/model_executor/layers/quantization/kv_cache.py``. It computes
    without the scales too, but with others than those that were calibrated.
    """
    quantization = export.quantization
    if quantization is None:
        for tensor in export.language_tensors():
            if tensor.kind in _KV_SCALES.values():
                yield Problem(tensor=tensor.name, text="is present without a config")
    elif quantization.kv_cache == "FP8":
        yield from _kv_scale_problems(export)
    elif quantization.kv_cache is not None:
        text = f"is {quantization.kv_cache}: {_other_cache(quantization.kv_cache)}"
        yield Problem(tensor="kv_cache_scheme", text=text, is_tolerated=True)


def _other_cache(kv_cache: str) -> str:
    if kv_cache == "NVFP4":
        return "vLLM takes it, and its scales are not checked here"
    return "vLLM warns and keeps the cache in the model's dtype"


def _kv_scale_problems(export: ExportedModel) -> Iterator[Problem]:
    for linear in export.linears:
        kind = _KV_SCALES.get(last_part(linear.name))
        if kind is not None:
            name = f"{linear.name}.{kind}"
            scale = export.tensors.get(name)
            if scale is None:
                yield Problem(tensor=name, text=_missing_kv_scale(export, linear.name, kind))
            else:
                yield from single_scale_problems(name, scale)


def _missing_kv_scale(export: ExportedModel, module: str, kind: str) -> str:
    """Return what vLLM takes instead of a scale; that depends on the other of the two."""
    parent, other = module.rpartition(".")[0], "v" if kind == "k_scale" else "k"
    if f"{parent}.{other}_proj.{other}_scale" not in export.tensors:
        return "is missing: vLLM takes 1.0"
    if other == "k":
        return "is missing: vLLM takes that of k_proj"
    return "is missing: vLLM refuses the checkpoint"


def _pre_quant_scale(export: ExportedModel) -> Iterator[Problem]:
    """No activation is smoothed: the loader has no parameter for the factors.

    Source: no class of ``SCHEME_FOR`` registers a parameter ``pre_quant_scale``.
    """
    for tensor in export.language_tensors():
        if tensor.kind == "pre_quant_scale":
            yield Problem(tensor=tensor.name, text="is not loaded by vLLM")


def _vision(export: ExportedModel) -> Iterator[Problem]:
    """Nothing in the vision tower is quantized, and the config excludes it.

    Stricter than vLLM 0.32.0, which reads a vision tower that is declared quantized and has scales.
    Schemes never quantize the tower, so a quantized one is a defect of the export. A tower that the
    config does not exclude becomes one of the declared algorithm, with scales that are not set:
    ``get_quant_method`` leaves ``vision_tower`` and ``vision_model`` alone, not ``visual``, which
    the models of ``qwen2_5_vl.py`` and ``qwen3_vl.py`` call theirs.
    """
    for tensor in export.vision_tensors():
        if tensor.is_scale or tensor.is_quantized_weight:
            text = f"({tensor.dtype}) belongs to a quantized layer of the vision tower"
            yield Problem(tensor=tensor.name, text=text)
        elif _is_vision_linear(tensor) and export.is_declared:
            algorithm = export.declared_algorithm(export.vllm_name(tensor.module))
            if algorithm is not None:
                text = f"is {tensor.dtype}, and the config declares {algorithm}; exclude the tower"
                yield Problem(tensor=tensor.name, text=text)


def _is_vision_linear(tensor: Tensor) -> bool:
    is_embedding = tensor.module.endswith("pos_embed")
    return tensor.kind == "weight" and len(tensor.shape) == 2 and not is_embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule.

    Attributes:
        needs_names: whether it applies only where the architecture's names in vLLM are known.
    """

    check: Callable[[ExportedModel], Iterator[Problem]]
    needs_names: bool = True


#: Every rule by the name that a violation gives.
RULES: Mapping[str, Rule] = {
    "configs": Rule(check=_configs, needs_names=False),
    "algorithm": Rule(check=_algorithm, needs_names=False),
    "files": Rule(check=files, needs_names=False),
    "tensors": Rule(check=tensor_set),
    "unquantized": Rule(check=unquantized),
    "values": Rule(check=values, needs_names=False),
    "exclusion": Rule(check=_exclusion),
    "fusion": Rule(check=fusion),
    "shared-scales": Rule(check=shared_scales),
    "scales": Rule(check=_scales),
    "kv-cache": Rule(check=_kv_cache),
    "pre-quant-scale": Rule(check=_pre_quant_scale, needs_names=False),
    "vision": Rule(check=_vision),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the rules say about an export.

    Attributes:
        violations: what vLLM refuses, or computes wrong numbers with; a record per cause.
        warnings: what vLLM tolerates, a record per cause.
        not_checked: which rules do not apply and why; None if all do.
    """

    violations: tuple[ViolationRecord, ...]
    warnings: tuple[ViolationRecord, ...]
    not_checked: str | None


def check_export(folder: Path, *, source: Path | None = None) -> Findings:
    """Read an exported checkpoint and apply every rule.

    Args:
        source: folder of the checkpoint that was quantized.

    Raises:
        ExportError: the folder holds no readable export.
    """
    return find(read_export(folder, source=source))


def find(export: ExportedModel) -> Findings:
    """Apply every rule to an export that was read; problems of one cause become one record."""
    found = list(problems(export))
    return Findings(
        violations=records(each for each in found if not each[1].is_tolerated),
        warnings=records(each for each in found if each[1].is_tolerated),
        not_checked=_not_checked(export),
    )


def problems(export: ExportedModel) -> Iterator[tuple[str, Problem]]:
    """Yield every problem with the name of its rule."""
    for name, rule in RULES.items():
        if export.is_known or not rule.needs_names:
            for problem in rule.check(export):
                yield name, problem


def _not_checked(export: ExportedModel) -> str | None:
    if export.is_known:
        return None
    rules = ", ".join(name for name, rule in RULES.items() if rule.needs_names)
    name = export.class_name or "an unnamed architecture"
    return f"the rules {rules}: the names in vLLM of {name} are not known here"
