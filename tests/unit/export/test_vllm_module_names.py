"""Names and exclusion patterns as vLLM matches them."""

import pytest
import torch
from edited_export import DOWN, GATE, LAYER, UP, export_to, violations_of
from pytest_autoquant.export.vllm_rules import read_export
from pytest_autoquant.export.vllm_rules.architecture.known import ARCHITECTURES
from pytest_autoquant.export.vllm_rules.configs import CONFIG, MIXED, Quantization
from pytest_autoquant.export.vllm_rules.module_names import DeclaredAlgorithms, fused_name
from pytest_autoquant.models.registry import REGISTRY

QWEN3, QWEN2_5 = "Qwen3VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"
BF16 = torch.bfloat16


def reported(export):
    return violations_of(export.save())


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        (QWEN3, "model.language_model.norm.weight", "language_model.model.norm.weight"),
        (QWEN3, "model.visual.blocks.0", "visual.blocks.0"),
        (QWEN3, "lm_head.weight", "language_model.lm_head.weight"),
        (QWEN3, "model.norm.weight", "model.norm.weight"),
        (QWEN2_5, "model.norm.weight", "language_model.model.norm.weight"),
        (QWEN2_5, "visual.blocks.0", "visual.blocks.0"),
        ("LlamaForCausalLM", "model.norm.weight", "model.norm.weight"),
        ("Gemma3ForCausalLM", "lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_are_renamed_by_prefix(architecture, name, expected):
    assert ARCHITECTURES[architecture].vllm_name(name) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("a.v_proj", "a.qkv_proj"),
        ("a.up_proj", "a.gate_up_proj"),
        ("a.o_proj", "a.o_proj"),
        ("a.mlp.experts.3.down_proj", "a.mlp.experts"),
        ("a.mlp.shared_expert.gate_proj", "a.mlp.shared_expert.gate_up_proj"),
    ],
)
def test_linears_are_fused_by_their_last_name(module, expected):
    assert fused_name(module) == expected


@pytest.mark.parametrize(
    ("pattern", "is_excluded"),
    [
        ("[", False),
        ("[z-a]", False),
        ("(" * 500, False),
        ("a\0b", False),
        ("*" * 500, True),
        ("", True),
    ],
    ids=lambda value: ascii(value)[:12],
)
def test_unusual_pattern_excludes_what_vllm_excludes(edited, pattern, is_excluded):
    export = edited("one")
    export.exclude(pattern)
    expected = {("exclusion", f"{DOWN}.weight")} if is_excluded else set()
    assert reported(export) == expected


def test_untied_output_layer_is_excluded_by_its_name_in_vllm(edited):
    export = edited("fp8")
    export.untie()
    assert reported(export) == set()
    export.include("lm_head")
    assert reported(export) == {("exclusion", "lm_head.weight_scale")}
    for pattern in ("language_model.lm_hea?", "lm_head*"):
        export.exclude(pattern)
        assert reported(export) == set()
        export.include(pattern)


def test_pattern_that_ends_with_a_star_is_renamed_by_its_prefix(edited):
    export = edited("fp8")
    export.exclude("model.language_model*")
    assert len(reported(export)) == 42


def test_output_layer_may_be_listed_under_its_name_in_the_checkpoint(edited):
    export = edited("formats")
    export.untie()
    export.make_fp8("lm_head")
    export.set_layers(lm_head="FP8")
    assert reported(export) == set()
    export.set_layers(lm_head=None)
    assert reported(export) == {("exclusion", "lm_head.weight")}


def test_fused_layer_may_be_listed_instead_of_its_linears(edited):
    export = edited("formats")
    export.set_layers(**{GATE: None, UP: None, f"{LAYER}.mlp.gate_up_proj": "FP8"})
    assert reported(export) == set()


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("mlp.shared_expert.down_proj", "FP8"),
        ("mlp.experts", "FP8"),
        ("mlp.experts.1.down_proj", None),
        ("self_attn.o_proj", None),
    ],
)
def test_experts_that_are_not_listed_take_the_algorithm_of_a_shared_expert(listed, expected):
    quantization = Quantization(
        source=CONFIG,
        method="modelopt",
        algorithm=MIXED,
        excluded=(),
        layers={f"model.layers.0.{listed}": "FP8"},
        group_sizes=frozenset(),
        kv_cache=None,
    )
    declared = DeclaredAlgorithms(quantization, ARCHITECTURES["Qwen2MoeForCausalLM"])
    assert declared.algorithm("model.layers.0.mlp.experts.0.down_proj") == expected


def test_excluding_layer_1_by_name_excludes_layer_10(edited):
    """vLLM matches substrings; ModelOpt writes ``layers.1.*`` for that reason."""
    export = edited("fp8")
    export.config["text_config"]["num_hidden_layers"] = 11
    for name in [name for name in export.tensors if ".layers.1." in name]:
        export.tensors[name.replace(".layers.1.", ".layers.10.")] = export.tensors.pop(name)
    export.exclude("model.language_model.layers.1.*")
    assert {rule for rule, _ in reported(export)} == {"tensors"}  # layers 1 and 6 to 9
    export.exclude("model.language_model.layers.1")
    excluded = {tensor for rule, tensor in reported(export) if rule == "exclusion"}
    assert {tensor.split(".")[3] for tensor in excluded} == {"10"}


def test_quantizing_layers_1_and_2_of_12_leaves_10_and_11_unquantized(tmp_path):
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(REGISTRY["tiny-qwen3-vl"].location)
    config.text_config.num_hidden_layers = 12
    torch.manual_seed(0)
    module = AutoModelForImageTextToText.from_config(config, dtype=BF16).eval()
    export_to(tmp_path, module, [[1, 2, 3]], "layers")
    linears = read_export(tmp_path).linears
    assert {int(each.name.split(".")[3]) for each in linears if each.is_quantized} == {1, 2}
    assert {rule for rule, _ in violations_of(tmp_path)} == {"files"}
