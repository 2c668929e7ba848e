"""Which linears share a format, and which are not scored at their own output."""

from dataclasses import replace

import pytest
import torch
from builders import load_tiny
from pytest_autoquant.modelopt_support.layer_groups import layer_groups, scored_elsewhere
from pytest_autoquant.models.layers import Linear


@pytest.fixture(scope="module")
def tiny():
    return load_tiny()


def named(model, *names, **shape):
    """The model with other linears; grouping only looks at names."""
    shape = {"out_features": 8, "in_features": 8, "input_widths": (8,)} | shape
    linears = tuple(Linear(name=name, module_type="Linear", **shape) for name in names)
    return replace(model, linears=linears)


def test_dense_decoder_layer_has_four_groups_scored_at_their_own_output(tiny):
    groups = layer_groups(tiny)
    first = "model.language_model.layers.0"
    assert len(groups) == 4 * 6
    assert groups[:4] == (
        tuple(f"{first}.self_attn.{name}_proj" for name in ("q", "k", "v")),
        (f"{first}.self_attn.o_proj",),
        (f"{first}.mlp.gate_proj", f"{first}.mlp.up_proj"),
        (f"{first}.mlp.down_proj",),
    )
    assert scored_elsewhere(tiny) is None


def test_experts_of_a_mixture_are_one_group_scored_at_the_block(tiny):
    names = ("0.gate_proj", "0.down_proj", "1.gate_proj")
    experts = tuple(f"layers.0.mlp.experts.{name}" for name in names)
    model = named(tiny, "layers.0.self_attn.o_proj", *experts)
    assert layer_groups(model) == (("layers.0.self_attn.o_proj",), experts)
    assert scored_elsewhere(model) == experts[0]


@pytest.mark.parametrize(
    ("matrices", "elsewhere"),
    [
        ({"gate_up_proj": (2, 8, 4), "down_proj": (2, 4, 4)}, None),
        ({"gate_up_proj": (2, 4, 8), "other": (2, 4, 4)}, "experts"),
    ],
)
def test_fused_experts_are_scored_at_their_output_if_modelopt_keeps_them_fused(
    tiny, matrices, elsewhere
):
    experts = torch.nn.Module()
    experts.num_experts = 2
    for name, shape in matrices.items():
        experts.register_parameter(name, torch.nn.Parameter(torch.ones(shape)))
    model = replace(tiny, module=torch.nn.ModuleDict({"experts": experts}))
    assert scored_elsewhere(named(model, "experts", input_widths=(4, 4))) == elsewhere


def test_rule_of_modelopt_may_be_a_function(tiny):
    names = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b")
    model = named(tiny, *(f"layers.0.linear_attn.{name}" for name in names))
    grouped = [[name.rpartition(".")[2] for name in members] for members in layer_groups(model)]
    assert grouped == [["in_proj_qkv", "in_proj_z"], ["in_proj_a", "in_proj_b"]]
