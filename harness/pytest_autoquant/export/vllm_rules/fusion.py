"""Rules of linears that vLLM loads as one layer: q, k and v; gate and up; a layer's experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from pytest_autoquant.export.checkpoint.files import last_part
from pytest_autoquant.export.vllm_rules.exported_model import ExportedModel, Linear
from pytest_autoquant.export.vllm_rules.module_names import FUSED
from pytest_autoquant.export.vllm_rules.problem import Problem

#: Scales of which vLLM takes the largest for all shards: by algorithm and last part of the name,
#: whether the numbers stay right. FP8 weights are quantized again with it
#: (``requantize_with_max_scale``), and a larger scale of inputs only rounds more coarsely; the
#: block scales of NVFP4 are not adapted to it.
_LARGEST_TAKEN = {
    ("FP8", "weight_scale"): True,
    ("FP8", "input_scale"): True,
    ("NVFP4", "weight_scale_2"): False,
    ("NVFP4", "input_scale"): True,
    ("W4A16_NVFP4", "weight_scale_2"): False,
}


def fusion(export: ExportedModel) -> Iterator[Problem]:
    """Linears that vLLM fuses are declared alike. The problem names the first of them.

    Source: ``is_layer_skipped`` in ``vllm/model_executor/layers/quantization/utils/quant_utils.py``
    raises if the names of some shards are excluded, and
    ``ModelOptMixedPrecisionConfig._resolve_quant_algo`` for two algorithms. If only some shards are
    listed in ``quantized_layers``, vLLM quantizes all of them.
    """
    linears = export.linears if export.is_declared else ()
    for _, members in groupby(sorted(linears, key=_fusion_order), lambda one: one.layer):
        shards = list(members)
        if len({(shard.algorithm, shard.is_excluded_by_name) for shard in shards}) > 1:
            declared = ", ".join(dict.fromkeys(map(_declared, shards)))
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


def shared_scales(export: ExportedModel) -> Iterator[Problem]:
    """Linears that vLLM fuses share their scales per tensor.

    Source: ``process`` of ``KFp8StaticTensor``, ``KNvfp4Static`` and ``KNvfp4Dynamic``, and
    ``process_weights_after_loading`` of ``ModelOptFp8MoEMethod``, which take the largest;
    ``ModelOptNvFp4FusedMoE`` takes the ``weight_scale_2`` of an expert's gate. Of the input scales
    of an expert's gate and up, FP8 keeps the one that is loaded last (``weight_loader`` in
    ``vllm/model_executor/layers/fused_moe/routed_experts.py``).
    """
    linears = export.linears if export.is_declared else ()
    fused = (linear for linear in linears if last_part(linear.name) in FUSED)
    for _, shards in groupby(sorted(fused, key=_shard_order), lambda one: _shard_order(one)[0]):
        yield from _unequal_scales(list(shards))


def _shard_order(linear: Linear) -> tuple[str, int]:
    """Return the layer, that of an expert for itself, and the place in it."""
    parent, _, last = linear.name.rpartition(".")
    return f"{parent}.{FUSED[last]}", list(FUSED).index(last)


def _unequal_scales(shards: list[Linear]) -> Iterator[Problem]:
    for (algorithm, kind), is_tolerated in _LARGEST_TAKEN.items():
        if {shard.algorithm for shard in shards} == {algorithm}:
            values = _values(shards, kind)
            if len(set(values)) > 1:
                yield _unequal(shards, kind, is_tolerated=is_tolerated)


def _values(shards: Iterable[Linear], kind: str) -> list[float]:
    """Return the scales that are there and have a finite element."""
    found = (shard.scales[kind].values.highest for shard in shards if kind in shard.scales)
    return [value for value in found if value is not None]


def _unequal(shards: list[Linear], kind: str, *, is_tolerated: bool) -> Problem:
    others = " and ".join(last_part(shard.name) for shard in shards[1:])
    effect = "which rounds more coarsely" if is_tolerated else "and computes wrong numbers"
    return Problem(
        tensor=f"{shards[0].name}.{kind}",
        text=f"is not that of {others}: vLLM takes the largest, {effect}",
        is_tolerated=is_tolerated,
    )
