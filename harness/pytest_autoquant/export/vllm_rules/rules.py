"""The rules: one function each, applied to an export that was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from pytest_autoquant.export.checkpoint_files import QUOTE_LENGTH, last_part
from pytest_autoquant.export.vllm_rules.configs import (
    ALGORITHMS,
    CONFIG,
    MIXED,
    MIXED_ALGORITHMS,
    Quantization,
)
from pytest_autoquant.export.vllm_rules.exported_model import (
    LINEAR_SCALES,
    ExportedModel,
    Linear,
    read_export,
)
from pytest_autoquant.export.vllm_rules.module_names import FUSED, MODEL_PARTS, PREFIXES
from pytest_autoquant.export.vllm_rules.scales import (
    Problem,
    scale_problems,
    single_scale_problems,
)
from pytest_autoquant.manifests.scheme_manifest import ViolationRecord
from pytest_autoquant.text import one_line

_KV_SCALES = {"k_proj": "k_scale", "v_proj": "v_scale"}


def check_export(folder: Path) -> tuple[ViolationRecord, ...]:
    """Read an exported checkpoint and apply every rule.

    Raises:
        ExportError: the folder holds no readable export, or one of an architecture without a
            name mapping.
    """
    return find_violations(read_export(folder))


def find_violations(export: ExportedModel) -> tuple[ViolationRecord, ...]:
    """Apply every rule to an export that was read."""
    return tuple(
        ViolationRecord(rule=rule, tensor=problem.tensor, text=problem.text)
        for rule, check in RULES.items()
        for problem in check(export)
    )


def _configs(export: ExportedModel) -> Iterator[Problem]:
    """Both configs declare the same: vLLM reads one of them, other programs the other.

    Source: ``ModelOptQuantConfigBase.from_config``, which reads either form.
    """
    if len(export.quantizations) < 2:
        return
    first, second = export.quantizations
    for key, one, other in (
        ("quant_algo", first.algorithm, second.algorithm),
        ("kv_cache_quant_algo", first.kv_cache, second.kv_cache),
        ("exclude_modules", frozenset(first.excluded), frozenset(second.excluded)),
        ("quantized_layers", frozenset(first.layers.items()), frozenset(second.layers.items())),
    ):
        if one != other:
            yield Problem(
                tensor=key,
                text=f"is {_difference(one, other)} in {first.source} and "
                f"{_difference(other, one)} in {second.source}",
            )


def _difference(one: object, other: object) -> str:
    """Show a value; of a set, the elements that the other set lacks."""
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return one_line(sorted(one - other) or "nothing more", QUOTE_LENGTH)
    return one_line(repr(one), QUOTE_LENGTH)


def _algorithm(export: ExportedModel) -> Iterator[Problem]:
    """The method and the algorithms are known to vLLM's ModelOpt loader.

    Source: ``QUANT_ALGOS``, ``_extract_modelopt_quant_algo`` and
    ``ModelOptMixedPrecisionConfig._from_config``.
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
        if algorithm not in MIXED_ALGORITHMS:
            text = f"is {algorithm!r}; in {MIXED} vLLM loads {', '.join(MIXED_ALGORITHMS)}"
            yield Problem(tensor=f"{name}.weight", text=text)


def _names(export: ExportedModel) -> Iterator[Problem]:
    """Every tensor belongs to a part of vLLM's model.

    Source: ``hf_to_vllm_mapper`` and the submodules in ``vllm/model_executor/models/qwen3_vl.py``
    and ``qwen2_5_vl.py`` of vLLM 0.32.
    """
    for name in sorted(export.tensors):
        if not export.vllm_name(name).startswith(MODEL_PARTS):
            known = ", ".join(f"{old}*" for old, _ in PREFIXES[export.architecture])
            yield Problem(
                tensor=name,
                text=f"is not a tensor of {export.architecture} in vLLM, which loads {known}",
            )


def _exclusion(export: ExportedModel) -> Iterator[Problem]:
    """A linear has scales exactly when the config declares it quantized.

    Source: ``ModelOptQuantConfigBase.get_quant_method``: an excluded linear has no parameters for
    scales; those of any other stay unset if the checkpoint lacks them.
    """
    linears = list(export.linears())
    for linear in linears:
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
    known = {linear.name for linear in linears}
    for tensor in export.language_tensors():
        if tensor.kind in LINEAR_SCALES and tensor.module not in known:
            yield Problem(tensor=tensor.name, text="is a scale without a linear weight")


def _why_unquantized(export: ExportedModel) -> str:
    if export.quantization is None:
        return "neither config declares a quantization"
    if export.quantization.algorithm == MIXED:
        return "quantized_layers does not name it or a pattern excludes it"
    return "the config excludes it"


def _fusion(export: ExportedModel) -> Iterator[Problem]:
    """Linears that vLLM fuses are declared alike. The problem names the first of them.

    Source: ``is_layer_skipped`` in ``vllm/model_executor/layers/quantization/utils/quant_utils.py``
    and ``ModelOptMixedPrecisionConfig._resolve_quant_algo``, which raise for a partial match.
    """
    for _, members in groupby(sorted(export.linears(), key=_fusion_order), lambda one: one.layer):
        shards = list(members)
        if len({(shard.algorithm, shard.is_excluded_by_name) for shard in shards}) > 1:
            declared = ", ".join(map(_declared, shards))
            yield Problem(
                tensor=shards[0].weight.name,
                text=f"is fused with linears that are declared differently: {declared}",
            )


def _fusion_order(linear: Linear) -> tuple[str, int]:
    last = last_part(linear.name)
    return linear.layer, list(FUSED).index(last) if last in FUSED else 0


def _declared(shard: Linear) -> str:
    excluded = " (excluded by its name)" if shard.is_excluded_by_name else ""
    return f"{last_part(shard.name)} {shard.algorithm or 'unquantized'}{excluded}"


def _scales(export: ExportedModel) -> Iterator[Problem]:
    """Weight and scales have the dtypes, shapes and values of the declared algorithm.

    Source: the ``create_weights`` methods, see ``vllm_rules/scales.py``.
    """
    for linear in export.linears():
        if linear.algorithm is not None and linear.is_quantized:
            yield from scale_problems(linear)


def _kv_cache(export: ExportedModel) -> Iterator[Problem]:
    """A quantized KV cache is FP8, with one scale for keys and one for values per attention.

    Source: ``from_config``, which turns ``float`` of 8 bits into FP8, and
    ``vllm/model_executor/layers/quantization/kv_cache.py`` of vLLM 0.32.
    """
    quantization = export.quantization
    if quantization is None:
        for tensor in export.language_tensors():
            if tensor.kind in _KV_SCALES.values():
                yield Problem(tensor=tensor.name, text="is present without a config")
    elif quantization.kv_cache == "FP8":
        yield from _kv_scale_problems(export)
    elif quantization.kv_cache is not None:
        text = f"is {quantization.kv_cache}; vLLM loads float of 8 bits (FP8)"
        yield Problem(tensor="kv_cache_scheme", text=text)


def _kv_scale_problems(export: ExportedModel) -> Iterator[Problem]:
    for linear in export.linears():
        kind = _KV_SCALES.get(last_part(linear.name))
        if kind is not None:
            name = f"{linear.name}.{kind}"
            for text in single_scale_problems(export.tensors.get(name)):
                yield Problem(tensor=name, text=text)


def _pre_quant_scale(export: ExportedModel) -> Iterator[Problem]:
    """No activation is smoothed: the loader has no parameter for the factors.

    Source: no ``create_weights`` of the linear methods registers ``pre_quant_scale``.
    """
    for tensor in export.language_tensors():
        if tensor.kind == "pre_quant_scale":
            yield Problem(tensor=tensor.name, text="is not loaded by vLLM")


def _vision(export: ExportedModel) -> Iterator[Problem]:
    """Nothing in the vision tower is quantized.

    Stricter than vLLM 0.32, which reads a vision tower that is declared quantized and has scales.
    Schemes never quantize the tower, so a quantized one is a defect of the export.
    """
    for tensor in export.vision_tensors():
        if tensor.is_scale or tensor.is_quantized_weight:
            text = f"({tensor.dtype}) belongs to a quantized layer of the vision tower"
            yield Problem(tensor=tensor.name, text=text)


#: Every rule by the name that a violation gives.
RULES: Mapping[str, Callable[[ExportedModel], Iterator[Problem]]] = {
    "configs": _configs,
    "algorithm": _algorithm,
    "names": _names,
    "exclusion": _exclusion,
    "fusion": _fusion,
    "scales": _scales,
    "kv-cache": _kv_cache,
    "pre-quant-scale": _pre_quant_scale,
    "vision": _vision,
}
