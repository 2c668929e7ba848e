"""Real exports break no rule; each edit of them breaks exactly the rules that it should."""

import math
from functools import partial

import pytest
import torch
from edited_export import DOWN, GATE, LAYER, OUT, UP, VISION, K, Q, V, violations_of
from pytest_autoquant.export.vllm_rules import RULES, read_export

E4M3, E5M2, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16
WEIGHT, SCALE, INPUT = (f"{DOWN}.{kind}" for kind in ("weight", "weight_scale", "input_scale"))
UP_SCALE, UP_INPUT = f"{UP}.weight_scale", f"{UP}.input_scale"
ATTENTION = f"{LAYER}.self_attn"
FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}


def broken(rule, *tensors):
    return {(rule, tensor) for tensor in tensors}


(
    configs,
    algorithm,
    _files,
    tensors,
    _unquantized,
    values,
    exclusion,
    fusion,
    _shared_scales,
    scales,
    kv_cache,
    pre_quant_scale,
    vision,
) = (partial(broken, rule) for rule in RULES)


@pytest.mark.parametrize(
    ("recipe", "declared", "num_quantized"),
    [
        ("fp8", "FP8", 42),
        ("mixed", "FP8", 22),
        ("plain", None, 0),
        ("one", "FP8", 1),
        ("cache", "FP8", 42),
        ("channel", "FP8_PER_CHANNEL_PER_TOKEN", 42),
        ("formats", "MIXED_PRECISION", 42),
        ("nvfp4", "NVFP4", 42),
        ("w4a16_nvfp4", "W4A16_NVFP4", 42),
        ("mxfp8", "MXFP8", 42),
        ("blocks", "FP8_PB_WO", 18),
    ],
)
def test_export_by_modelopt_breaks_no_rule(exported, recipe, declared, num_quantized):
    export = read_export(exported(recipe))
    linears = export.linears
    found = export.quantization.algorithm if export.quantization else None
    assert (len(linears), found) == (42, declared)
    assert sum(linear.is_quantized for linear in linears) == num_quantized
    assert violations_of(exported(recipe)) == set()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("int8", algorithm("quant_algo")),
        ("cache_only", algorithm("quant_algo")),
        ("q_only", fusion(*(f"{Q.replace('.0.', f'.{n}.')}.weight" for n in range(6)))),
        ("gate_only", fusion(*(f"{GATE.replace('.0.', f'.{n}.')}.weight" for n in range(6)))),
    ],
)
def test_export_that_vllm_does_not_load_is_reported(exported, recipe, expected):
    assert violations_of(exported(recipe)) == expected


def declare(it, config, hf_config):
    """Declare a KV cache in both configs."""
    it.declared.update(kv_cache_scheme=config)
    it.hf_declared.update(kv_cache_quant_algo=hf_config)


def declare_only(it, **quantization):
    it.config.update(quantization_config=quantization)


#: Recipe, edit, and everything that must be reported afterwards.
EDITS = {
    # exclusion
    "no weight scale": ("fp8", lambda it: it.drop(SCALE), exclusion(SCALE)),
    "no scales": ("fp8", lambda it: it.drop(SCALE, INPUT), exclusion(SCALE) | scales(INPUT)),
    "no scale per channel": ("channel", lambda it: it.drop(SCALE), exclusion(SCALE)),
    "plain but not excluded": ("fp8", lambda it: it.make_plain(DOWN), exclusion(SCALE)),
    "k plain but not excluded": (
        "fp8",
        lambda it: it.make_plain(K),
        exclusion(f"{K}.weight_scale"),
    ),
    "quantized but excluded": ("mixed", lambda it: it.make_fp8(OUT), exclusion(f"{OUT}.weight")),
    **{
        f"excluded by {kind}": ("fp8", lambda it, p=pattern: it.exclude(p), exclusion(WEIGHT))
        for kind, pattern in {
            "name": DOWN,
            "prefix": f"{LAYER}.mlp.down*",
            "glob": "*.layers.0.*down_proj",
            "substring": "layers.0.mlp.down",
        }.items()
    },
    "excluded by the fused layer's name": (
        "fp8",
        lambda it: it.exclude(f"{LAYER}.mlp.gate_up_proj"),
        exclusion(f"{GATE}.weight", f"{UP}.weight"),
    ),
    "globs match shards but not the fused layer": (
        "mixed",
        lambda it: (
            it.include(f"{ATTENTION}*"),
            it.exclude(*(f"*layers.0.self_attn.{each}_pro?" for each in "qkvo")),
        ),
        exclusion(*(f"{each}.weight_scale" for each in (Q, K, V))),
    ),
    "excluded, quantized weight without scales": (
        "fp8",
        lambda it: (it.exclude(DOWN), it.drop(SCALE, INPUT)),
        exclusion(WEIGHT),
    ),
    "scales without a weight": ("fp8", lambda it: it.drop(WEIGHT), tensors(WEIGHT)),
    "no config": (
        "one",
        lambda it: (it.config.pop("quantization_config"), setattr(it, "hf_config", None)),
        exclusion(WEIGHT),
    ),
    "unlisted layer": ("formats", lambda it: it.set_layers(**{DOWN: None}), exclusion(WEIGHT)),
    "listed plain layer": ("formats", lambda it: it.make_plain(DOWN), exclusion(SCALE)),
    "listed layer that is excluded": ("formats", lambda it: it.exclude(DOWN), exclusion(WEIGHT)),
    # fusion
    "k and v plain": (
        "fp8",
        lambda it: (it.make_plain(K, V), it.exclude(K, V)),
        fusion(f"{Q}.weight"),
    ),
    "up plain": ("fp8", lambda it: (it.make_plain(UP), it.exclude(UP)), fusion(f"{GATE}.weight")),
    "q also excluded by name": ("mixed", lambda it: it.exclude(Q), fusion(f"{Q}.weight")),
    "q and its fused layer excluded by name": (
        "mixed",
        lambda it: it.exclude(Q, f"{ATTENTION}.qkv_proj"),
        set(),
    ),
    "unequal shards": (
        "formats",
        lambda it: it.set_layers(**{UP: "NVFP4"}),
        fusion(f"{GATE}.weight") | scales(f"{UP}.weight"),
    ),
    # scales
    "no input scale, mixed precision": ("formats", lambda it: it.drop(INPUT), scales(INPUT)),
    **{
        f"{dtype} weight, {recipe}": (
            recipe,
            lambda it, dtype=dtype: it.zeros(WEIGHT, dtype),
            scales(WEIGHT),
        )
        for recipe, dtype in (("fp8", E5M2), ("fp8", BF16), ("channel", E5M2))
    },
    "scales of another dtype": (
        "fp8",
        lambda it: (it.zeros(SCALE, torch.int32), it.zeros(UP_INPUT, torch.float64)),
        scales(SCALE, UP_INPUT),
    ),
    "scales of another shape": (
        "fp8",
        lambda it: (it.put(SCALE, *[1.0] * 127), it.put(UP_INPUT, shape=[0])),
        scales(SCALE, UP_INPUT),
    ),
    **{
        f"{name.rpartition('.')[2]} {value}": (
            "fp8",
            lambda it, name=name, value=value: it.put(name, value),
            scales(name) if math.isfinite(value) else values(name),
        )
        for name, value in (
            (SCALE, math.nan),
            (SCALE, math.inf),
            (SCALE, 0.0),
            (SCALE, -0.5),
            (INPUT, math.nan),
        )
    },
    "scales per channel of another shape": (
        "channel",
        lambda it: (it.put(SCALE, *[1.0] * 127), it.put(UP_SCALE, *[1.0] * 384, shape=[384, 1])),
        scales(SCALE, UP_SCALE),
    ),
    "NaN scale of one channel": (
        "channel",
        lambda it: it.put(SCALE, *[1.0] * 127, math.nan),
        values(SCALE),
    ),
    "input scale and scales per token": ("channel", lambda it: it.put(INPUT, 1.0), scales(INPUT)),
    # algorithm
    **{
        f"algorithm {name}": (
            "fp8",
            lambda it, name=name: it.set_algorithm(name),
            algorithm("quant_algo"),
        )
        for name in ("W8A8_SQ_PER_CHANNEL", "W8A16", "W4A16_AWQ", "FP9")
    },
    "method awq": (
        "plain",
        lambda it: declare_only(it, quant_method="awq"),
        algorithm("quant_method", "quant_algo"),
    ),
    "empty config": ("plain", declare_only, algorithm("quant_method", "quant_algo")),
    "algorithm and method in another case": (
        "fp8",
        lambda it: it.declared.update(quant_algo="fp8", quant_method="ModelOpt_fp8"),
        set(),
    ),
    "mixed without layers": (
        "plain",
        lambda it: declare_only(it, quant_method="modelopt", quant_algo="MIXED_PRECISION"),
        algorithm("quantized_layers"),
    ),
    "INT4 layer": (
        "formats",
        lambda it: it.set_layers(**{DOWN: "W4A16_AWQ"}),
        algorithm(WEIGHT),
    ),
    # kv-cache
    "KV scale without a config": (
        "plain",
        lambda it: it.put(f"{K}.k_scale", 1.0),
        kv_cache(f"{K}.k_scale"),
    ),
    "quantized KV cache without scales": (
        "fp8",
        lambda it: declare(it, FLOAT8, "FP8"),
        kv_cache(
            *(
                f"model.language_model.layers.{n}.self_attn.{kind}_proj.{kind}_scale"
                for n in range(6)
                for kind in "kv"
            )
        ),
    ),
    "invalid KV scales": (
        "cache",
        lambda it: (it.put(f"{K}.k_scale", math.nan), it.put(f"{V}.v_scale", 1.0, 1.0)),
        values(f"{K}.k_scale") | kv_cache(f"{V}.v_scale"),
    ),
    "INT8 KV cache": (
        "plain",
        lambda it: declare_only(
            it, quant_method="modelopt", kv_cache_scheme={"type": "int", "num_bits": 8}
        ),
        algorithm("quant_algo"),
    ),
    # configs
    "two algorithms": (
        "fp8",
        lambda it: it.hf_declared.update(quant_algo="NVFP4"),
        configs("quant_algo"),
    ),
    "two exclusions": (
        "fp8",
        lambda it: it.hf_declared["exclude_modules"].append(DOWN),
        configs("exclude_modules"),
    ),
    "two KV caches": (
        "fp8",
        lambda it: it.hf_declared.update(kv_cache_quant_algo="FP8"),
        configs("kv_cache_quant_algo"),
    ),
    "two lists of layers": (
        "formats",
        lambda it: it.hf_declared["quantized_layers"].pop(DOWN),
        configs("quantized_layers"),
    ),
    # pre-quant-scale, vision
    "smoothed activations": (
        "fp8",
        lambda it: it.put(f"{DOWN}.pre_quant_scale", *[1.0] * 384),
        pre_quant_scale(f"{DOWN}.pre_quant_scale"),
    ),
    "quantized vision weight": (
        "fp8",
        lambda it: it.zeros(f"{VISION}.weight", E4M3),
        vision(f"{VISION}.weight"),
    ),
    "vision scales": (
        "plain",
        lambda it: (it.put(f"{VISION}.input_scale", 1.0), it.put(f"{VISION}.pre_quant_scale", 1.0)),
        vision(f"{VISION}.input_scale", f"{VISION}.pre_quant_scale"),
    ),
}


@pytest.mark.parametrize(("recipe", "edit", "expected"), EDITS.values(), ids=EDITS)
def test_edited_export_breaks_exactly_these_rules(edited, recipe, edit, expected):
    export = edited(recipe)
    edit(export)
    assert violations_of(export.save()) == expected


def test_every_rule_names_its_source():
    for rule in RULES.values():
        doc = rule.check.__doc__
        assert "Source: " in doc or "Stricter than vLLM 0.32.0" in doc


def test_qwen2_5_vl_tensors_are_reported_by_their_own_names(edited):
    export = edited("mixed", "tiny-qwen2.5-vl")
    assert violations_of(export.save()) == set()
    export.drop("model.layers.0.mlp.down_proj.weight_scale")
    export.zeros("visual.blocks.0.attn.proj.weight", E4M3)
    export.put("model.layers.1.mlp.up_proj.input_scale", -1.0)
    assert violations_of(export.save()) == {
        ("exclusion", "model.layers.0.mlp.down_proj.weight_scale"),
        ("scales", "model.layers.1.mlp.up_proj.input_scale"),
        ("vision", "visual.blocks.0.attn.proj.weight"),
    }


@pytest.mark.parametrize("is_hf_config", [False, True])
def test_one_of_the_two_configs_is_enough(edited, is_hf_config):
    export = edited("mixed")
    if is_hf_config:
        del export.config["quantization_config"]
    else:
        export.hf_config = None
    assert violations_of(export.save()) == set()
    export.drop(SCALE)
    export.make_fp8(OUT)
    assert violations_of(export.save()) == exclusion(SCALE, f"{OUT}.weight")


def test_sharded_export_is_read_as_one(edited):
    export = edited("mixed")
    assert violations_of(export.save_in_two_files()) == set()
    export.drop(INPUT)
    assert violations_of(export.save_in_two_files()) == scales(INPUT)
