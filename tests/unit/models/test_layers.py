"""Which linears are measured, and their shapes."""

import pytest
from builders import config_of
from pytest_autoquant.models.layers import (
    architecture_linears,
    bits_per_active_weight,
    language_model_linears,
    other_weighted_modules,
)
from pytest_autoquant.models.registry import REGISTRY
from torch import nn

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("name", "hidden", "query", "key", "inner"),
    [("qwen3-vl-4b", 2560, 4096, 1024, 9728), ("qwen2.5-vl-3b", 2048, 2048, 256, 11008)],
)
def test_full_size_architecture_needs_no_checkpoint(name, hidden, query, key, inner):
    linears = architecture_linears(REGISTRY[name], trust_remote_code=False)
    assert [x.name.rpartition(".")[2] for x in linears] == NAMES * 36
    attention = [(query, hidden), (key, hidden), (key, hidden), (hidden, query)]
    mlp = [(inner, hidden), (inner, hidden), (hidden, inner)]
    assert [(x.out_features, x.in_features) for x in linears] == [*attention, *mlp] * 36


def test_linears_are_the_decoders_in_module_order(qwen3):
    linears = language_model_linears(qwen3)
    assert [x.name.rpartition(".")[2] for x in linears] == NAMES
    assert linears[0].name == "model.layers.0.self_attn.q_proj"
    assert {x.module_type for x in linears} == {"Linear"}
    assert [x.num_weights for x in linears] == [
        qwen3.get_submodule(x.name).weight.numel() for x in linears
    ]
    assert not any(x.is_fused for x in linears)
    assert other_weighted_modules(qwen3, linears) == ("lm_head",)
    decoder_alone = language_model_linears(qwen3.model)
    assert decoder_alone[0].name == "layers.0.self_attn.q_proj"


def test_vision_tower_and_head_are_not_measured(tiny):
    assert all(x.name.startswith("model.language_model.layers.") for x in tiny.linears)
    assert "lm_head" in tiny.others
    assert "model.visual.patch_embed.proj" in tiny.others


def test_convolution_in_the_decoder_is_not_measured():
    decoder = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 2))
    decoder.get_decoder = lambda: decoder
    linears = language_model_linears(decoder)
    assert [linear.name for linear in linears] == ["0"]
    assert other_weighted_modules(decoder, linears) == ("1",)


def test_fused_experts_are_one_linear_with_all_their_weights():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_hidden_layers=1,
        num_experts=4,
        num_experts_per_tok=3,
        vocab_size=2048,
    )
    *attention, experts = language_model_linears(Qwen3MoeForCausalLM(config))
    assert [x.name.rpartition(".")[2] for x in attention] == [f"{x}_proj" for x in "qkvo"]
    assert experts.name == "model.layers.0.mlp.experts"
    assert experts.is_fused
    assert experts.input_widths == (64, 96)
    assert experts.num_weights == 4 * (2 * 96 * 64 + 64 * 96)
    assert experts.active_weights == 3 * (2 * 96 * 64 + 64 * 96)
    assert experts.weights_per_product == (2 * 96 * 64 + 64 * 96) // 2
    assert (experts.output_width, attention[0].output_width) == (64, attention[0].out_features)
    assert all(linear.active_weights == linear.num_weights for linear in attention)
    widths = ((192, 64), (64, 96))  # one group of 128 and so one scale per row
    stored = [4 * rows * (width * 4 + 16) for rows, width in widths]
    assert experts.stored_bits(config_of("wint4_afp16")) == sum(stored)
    assert experts.padded_to(config_of("wint4_afp16")) == 128
    linears, int4 = (*attention, experts), config_of("wint4_afp16")
    plain = sum(linear.stored_bits(int4) for linear in attention)
    active = sum(linear.active_weights for linear in linears)
    expected = (plain + 0.75 * sum(stored)) / active
    assert bits_per_active_weight(linears, int4) == pytest.approx(expected, rel=1e-12)
    assert bits_per_active_weight(attention, int4) is None
