"""Real exports break no rule; each edit of them breaks exactly the rules that it should."""

import math

import pytest
import torch
from edited_export import DOWN, GATE, LAYER, OUT, UP, VISION, K, Q, V
from pytest_autoquant.export.vllm_rules import RULES, check_export, read_export
from pytest_autoquant.export.vllm_rules.configs import CONFIG

E4M3, E5M2, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16


def violations_of(folder):
    """Return (rule, tensor) of every violation, each of which is reported once."""
    found = [(violation.rule, violation.tensor) for violation in check_export(folder)]
    assert len(found) == len(set(found))
    return set(found)


def exclusion(*tensors):
    return {("exclusion", tensor) for tensor in tensors}


def scales(*tensors):
    return {("scales", tensor) for tensor in tensors}


def config(*keys):
    return {("configs", key) for key in keys}


def algorithm(*keys):
    return {("algorithm", key) for key in keys}


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
        ("blocks", "FP8_PB_WO", 42),
    ],
)
def test_export_by_modelopt_breaks_no_rule(exported, recipe, declared, num_quantized):
    export = read_export(exported(recipe))
    linears = list(export.linears())
    found = export.quantization.algorithm if export.quantization else None
    assert (len(linears), found) == (42, declared)
    assert sum(linear.is_quantized for linear in linears) == num_quantized
    assert violations_of(exported(recipe)) == set()


@pytest.mark.parametrize("recipe", ["fp8", "mixed", "plain"])
def test_qwen2_5_vl_export_breaks_no_rule(exported, recipe):
    folder = exported(recipe, "tiny-qwen2.5-vl")
    quantized = {each.name for each in read_export(folder).linears() if each.is_quantized}
    assert ("model.layers.0.mlp.up_proj" in quantized) is (recipe != "plain")
    assert ("model.layers.0.self_attn.q_proj" in quantized) is (recipe == "fp8")
    assert violations_of(folder) == set()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("int8", algorithm("quant_algo")),
        ("cache_only", algorithm("quant_algo")),
        ("q_only", {("fusion", f"{Q.replace('.0.', f'.{n}.')}.weight") for n in range(6)}),
        ("gate_only", {("fusion", f"{GATE.replace('.0.', f'.{n}.')}.weight") for n in range(6)}),
    ],
)
def test_export_that_vllm_does_not_load_is_reported(exported, recipe, expected):
    assert violations_of(exported(recipe)) == expected


#: Recipe, edit, and everything that must be reported afterwards.
EDITS = {
    # exclusion
    "no weight scale": (
        "fp8",
        lambda it: it.drop(f"{DOWN}.weight_scale"),
        exclusion(f"{DOWN}.weight_scale"),
    ),
    "no scales": (
        "fp8",
        lambda it: it.drop(f"{DOWN}.weight_scale", f"{DOWN}.input_scale"),
        exclusion(f"{DOWN}.weight_scale") | scales(f"{DOWN}.input_scale"),
    ),
    "plain but not excluded": (
        "fp8",
        lambda it: it.make_plain(DOWN),
        exclusion(f"{DOWN}.weight_scale"),
    ),
    "one of q, k, v plain but not excluded": (
        "fp8",
        lambda it: it.make_plain(K),
        exclusion(f"{K}.weight_scale"),
    ),
    "quantized but excluded": (
        "mixed",
        lambda it: it.make_fp8(OUT),
        exclusion(f"{OUT}.weight"),
    ),
    "excluded by name": ("fp8", lambda it: it.exclude(DOWN), exclusion(f"{DOWN}.weight")),
    "excluded by prefix": (
        "fp8",
        lambda it: it.exclude(f"{LAYER}.mlp.down*"),
        exclusion(f"{DOWN}.weight"),
    ),
    "excluded by glob": (
        "fp8",
        lambda it: it.exclude("*.layers.0.*down_proj"),
        exclusion(f"{DOWN}.weight"),
    ),
    "excluded by substring": (
        "fp8",
        lambda it: it.exclude("layers.0.mlp.down"),
        exclusion(f"{DOWN}.weight"),
    ),
    "excluded by the fused layer's name": (
        "fp8",
        lambda it: it.exclude(f"{LAYER}.mlp.gate_up_proj"),
        exclusion(f"{GATE}.weight", f"{UP}.weight"),
    ),
    "plain and no longer excluded": (
        "mixed",
        lambda it: it.include(f"{LAYER}.self_attn*"),
        exclusion(*(f"{each}.weight_scale" for each in (Q, K, V, OUT))),
    ),
    "globs match shards but not the fused layer": (
        "mixed",
        lambda it: (
            it.include(f"{LAYER}.self_attn*"),
            it.exclude(*(f"*layers.0.self_attn.{each}_pro?" for each in "qkvo")),
        ),
        exclusion(*(f"{each}.weight_scale" for each in (Q, K, V))),
    ),
    "excluded, quantized weight without scales": (
        "fp8",
        lambda it: (it.exclude(DOWN), it.drop(f"{DOWN}.weight_scale", f"{DOWN}.input_scale")),
        exclusion(f"{DOWN}.weight"),
    ),
    "scales without a weight": (
        "fp8",
        lambda it: it.drop(f"{DOWN}.weight"),
        exclusion(f"{DOWN}.weight_scale", f"{DOWN}.input_scale"),
    ),
    "no config": (
        "one",
        lambda it: (it.config.pop("quantization_config"), setattr(it, "hf_config", None)),
        exclusion(f"{DOWN}.weight"),
    ),
    "no weight scale per channel": (
        "channel",
        lambda it: it.drop(f"{DOWN}.weight_scale"),
        exclusion(f"{DOWN}.weight_scale"),
    ),
    "no scale of MXFP8": (
        "mxfp8",
        lambda it: it.drop(f"{DOWN}.weight_scale"),
        exclusion(f"{DOWN}.weight_scale"),
    ),
    "layer missing in quantized_layers": (
        "formats",
        lambda it: it.set_layers(**{DOWN: None}),
        exclusion(f"{DOWN}.weight"),
    ),
    "plain layer in quantized_layers": (
        "formats",
        lambda it: it.make_plain(DOWN),
        exclusion(f"{DOWN}.weight_scale"),
    ),
    "excluded layer in quantized_layers": (
        "formats",
        lambda it: it.exclude(DOWN),
        exclusion(f"{DOWN}.weight"),
    ),
    # fusion
    "k and v plain": (
        "fp8",
        lambda it: (it.make_plain(K, V), it.exclude(K, V)),
        {("fusion", f"{Q}.weight")},
    ),
    "up plain": (
        "fp8",
        lambda it: (it.make_plain(UP), it.exclude(UP)),
        {("fusion", f"{GATE}.weight")},
    ),
    "one of q, k, v also excluded by name": (
        "mixed",
        lambda it: it.exclude(Q),
        {("fusion", f"{Q}.weight")},
    ),
    "two algorithms in a fused layer": (
        "formats",
        lambda it: it.set_layers(**{UP: "NVFP4"}),
        {("fusion", f"{GATE}.weight")},
    ),
    # scales
    "no input scale": (
        "fp8",
        lambda it: it.drop(f"{DOWN}.input_scale"),
        scales(f"{DOWN}.input_scale"),
    ),
    "no input scale, mixed precision": (
        "formats",
        lambda it: it.drop(f"{DOWN}.input_scale"),
        scales(f"{DOWN}.input_scale"),
    ),
    "E5M2 weight": (
        "fp8",
        lambda it: it.zeros(f"{DOWN}.weight", E5M2),
        scales(f"{DOWN}.weight"),
    ),
    "BF16 weight with scales": (
        "fp8",
        lambda it: it.zeros(f"{DOWN}.weight", BF16),
        scales(f"{DOWN}.weight"),
    ),
    "INT8 weight": (
        "fp8",
        lambda it: it.zeros(f"{DOWN}.weight", torch.int8),
        scales(f"{DOWN}.weight"),
    ),
    "E5M2 weight per channel": (
        "channel",
        lambda it: it.zeros(f"{DOWN}.weight", E5M2),
        scales(f"{DOWN}.weight"),
    ),
    "scales of another dtype": (
        "fp8",
        lambda it: (
            it.zeros(f"{DOWN}.weight_scale", torch.int32),
            it.zeros(f"{UP}.input_scale", torch.float64),
        ),
        scales(f"{DOWN}.weight_scale", f"{UP}.input_scale"),
    ),
    "scales of another shape": (
        "fp8",
        lambda it: (
            it.put(f"{DOWN}.weight_scale", *[1.0] * 128),
            it.put(f"{UP}.input_scale", shape=[0]),
        ),
        scales(f"{DOWN}.weight_scale", f"{UP}.input_scale"),
    ),
    **{
        f"{kind}_scale {value}": (
            "fp8",
            lambda it, kind=kind, value=value: it.put(f"{DOWN}.{kind}_scale", value),
            scales(f"{DOWN}.{kind}_scale"),
        )
        for kind in ("weight", "input")
        for value in (math.nan, math.inf, 0.0, -0.5)
    },
    "scales per channel of another shape": (
        "channel",
        lambda it: (
            it.put(f"{DOWN}.weight_scale", *[1.0] * 127),
            it.put(f"{UP}.weight_scale", *[1.0] * 384, shape=[384, 1]),
        ),
        scales(f"{DOWN}.weight_scale", f"{UP}.weight_scale"),
    ),
    "one NaN among scales per channel": (
        "channel",
        lambda it: it.put(f"{DOWN}.weight_scale", *[1.0] * 127, math.nan),
        scales(f"{DOWN}.weight_scale"),
    ),
    "input scale beside scales per token": (
        "channel",
        lambda it: it.put(f"{DOWN}.input_scale", 1.0),
        scales(f"{DOWN}.input_scale"),
    ),
    "NVFP4 scales not finite": (
        "nvfp4",
        lambda it: (
            it.put(f"{DOWN}.weight_scale_2", math.nan),
            it.put(f"{UP}.input_scale", math.inf),
        ),
        scales(f"{DOWN}.weight_scale_2", f"{UP}.input_scale"),
    ),
    "block scale not finite": (
        "blocks",
        lambda it: it.tensors[f"{DOWN}.weight_scale"].fill_(math.inf),
        scales(f"{DOWN}.weight_scale"),
    ),
    # algorithm
    **{
        f"algorithm {name}": (
            "fp8",
            lambda it, name=name: it.set_algorithm(name),
            algorithm("quant_algo"),
        )
        for name in ("W8A8_SQ_PER_CHANNEL", "W8A16", "W4A16_AWQ", "NVFP4_AWQ", "FP9")
    },
    "method awq": (
        "plain",
        lambda it: it.config.update(quantization_config={"quant_method": "awq"}),
        algorithm("quant_method", "quant_algo"),
    ),
    "empty quantization_config": (
        "plain",
        lambda it: it.config.update(quantization_config={}),
        algorithm("quant_method", "quant_algo"),
    ),
    "mixed precision without layers": (
        "plain",
        lambda it: it.config.update(
            quantization_config={"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
        ),
        algorithm("quantized_layers"),
    ),
    "MXFP8 in mixed precision": (
        "formats",
        lambda it: it.set_layers(**{DOWN: "MXFP8"}),
        algorithm(f"{DOWN}.weight"),
    ),
    # kv-cache
    "KV scale without a config": (
        "plain",
        lambda it: it.put(f"{K}.k_scale", 1.0),
        {("kv-cache", f"{K}.k_scale")},
    ),
    "quantized KV cache without scales": (
        "fp8",
        lambda it: (
            it.declared.update(kv_cache_scheme={"dynamic": False, "num_bits": 8, "type": "float"}),
            it.hf_declared.update(kv_cache_quant_algo="FP8"),
        ),
        {
            ("kv-cache", f"model.language_model.layers.{n}.self_attn.{kind}_proj.{kind}_scale")
            for n in range(6)
            for kind in "kv"
        },
    ),
    "invalid KV scales": (
        "cache",
        lambda it: (it.put(f"{K}.k_scale", math.nan), it.put(f"{V}.v_scale", 1.0, 1.0)),
        {("kv-cache", f"{K}.k_scale"), ("kv-cache", f"{V}.v_scale")},
    ),
    "NVFP4 KV cache": (
        "fp8",
        lambda it: (
            it.declared.update(kv_cache_scheme="NVFP4"),
            it.hf_declared.update(kv_cache_quant_algo="NVFP4"),
        ),
        {("kv-cache", "kv_cache_scheme")},
    ),
    "INT8 KV cache": (
        "plain",
        lambda it: it.config.update(
            quantization_config={
                "quant_method": "modelopt",
                "kv_cache_scheme": {"type": "int", "num_bits": 8},
            }
        ),
        {("kv-cache", "kv_cache_scheme")} | algorithm("quant_algo"),
    ),
    # configs
    "configs with two algorithms": (
        "fp8",
        lambda it: it.hf_declared.update(quant_algo="NVFP4"),
        config("quant_algo"),
    ),
    "configs with two exclusions": (
        "fp8",
        lambda it: it.hf_declared["exclude_modules"].append(DOWN),
        config("exclude_modules"),
    ),
    "configs with two KV caches": (
        "fp8",
        lambda it: it.hf_declared.update(kv_cache_quant_algo="FP8"),
        config("kv_cache_quant_algo"),
    ),
    "configs with two lists of layers": (
        "formats",
        lambda it: it.hf_declared["quantized_layers"].pop(DOWN),
        config("quantized_layers"),
    ),
    # names, pre-quant-scale, vision
    "names of another architecture": (
        "plain",
        lambda it: (
            it.zeros("model.layers.0.mlp.down_proj.weight", BF16, 2, 2),
            it.zeros("lm_head", BF16, 2, 2),
        ),
        {("names", "model.layers.0.mlp.down_proj.weight"), ("names", "lm_head")},
    ),
    "smoothed activations": (
        "fp8",
        lambda it: it.put(f"{DOWN}.pre_quant_scale", *[1.0] * 384),
        {("pre-quant-scale", f"{DOWN}.pre_quant_scale")},
    ),
    "quantized vision weight": (
        "fp8",
        lambda it: (
            it.zeros(f"{VISION}.weight", E4M3),
            it.put(f"{VISION}.weight_scale", 1.0),
        ),
        {("vision", f"{VISION}.weight"), ("vision", f"{VISION}.weight_scale")},
    ),
    "vision scales": (
        "plain",
        lambda it: (
            it.put(f"{VISION}.input_scale", 1.0),
            it.put(f"{VISION}.pre_quant_scale", 1.0),
        ),
        {("vision", f"{VISION}.input_scale"), ("vision", f"{VISION}.pre_quant_scale")},
    ),
}


@pytest.mark.parametrize(("recipe", "edit", "expected"), EDITS.values(), ids=EDITS)
def test_edited_export_breaks_exactly_these_rules(edited, recipe, edit, expected):
    export = edited(recipe)
    edit(export)
    assert violations_of(export.save()) == expected


def test_edits_cover_every_rule():
    assert {rule for _, _, expected in EDITS.values() for rule, _ in expected} == set(RULES)


def test_every_rule_names_its_source():
    for check in RULES.values():
        assert "Source: " in check.__doc__ or "Stricter than vLLM 0.32" in check.__doc__


def test_qwen2_5_vl_tensors_are_reported_by_their_own_names(edited):
    export = edited("fp8", "tiny-qwen2.5-vl")
    export.drop("model.layers.0.mlp.down_proj.weight_scale")
    export.zeros("visual.blocks.0.attn.proj.weight", E4M3)
    export.put("model.layers.1.mlp.up_proj.input_scale", -1.0)
    assert violations_of(export.save()) == {
        ("exclusion", "model.layers.0.mlp.down_proj.weight_scale"),
        ("scales", "model.layers.1.mlp.up_proj.input_scale"),
        ("vision", "visual.blocks.0.attn.proj.weight"),
    }


@pytest.mark.parametrize("source", ["config.json", "hf_quant_config.json"])
def test_one_of_the_two_configs_is_enough(edited, source):
    export = edited("mixed")
    if source == CONFIG:
        export.hf_config = None
    else:
        del export.config["quantization_config"]
    assert violations_of(export.save()) == set()
    export.drop(f"{DOWN}.weight_scale")
    export.make_fp8(OUT)
    assert violations_of(export.save()) == exclusion(f"{DOWN}.weight_scale", f"{OUT}.weight")


def test_algorithm_and_method_are_compared_without_case(edited):
    export = edited("fp8")
    export.declared.update(quant_algo="fp8", quant_method="ModelOpt_fp8")
    assert violations_of(export.save()) == set()


def test_scale_of_one_element_may_have_one_dimension(edited):
    export = edited("fp8")
    export.put(f"{DOWN}.weight_scale", 0.5)
    assert violations_of(export.save()) == set()


def test_sharded_export_is_read_as_one(edited):
    export = edited("mixed")
    assert violations_of(export.save_in_two_files()) == set()
    export.drop(f"{DOWN}.input_scale")
    assert violations_of(export.save_in_two_files()) == scales(f"{DOWN}.input_scale")
