"""Quant pairs: the built-in grid and the base configs composed for it."""

import modelopt.torch.quantization as mtq
import pytest
from pytest_autoquant.formats.quant_pair import (
    INPUT_QUANTIZER,
    WEIGHT_QUANTIZER,
    builtin_pairs,
    compose,
    composed_format_name,
    is_excluded,
)

PAIRS = builtin_pairs()
MODELOPT_NAMES = {
    "wfp8_afp8": "FP8_DEFAULT_CFG",
    "wint8_aint8": "INT8_DEFAULT_CFG",
    "wint8_afp16": "INT8_WEIGHT_ONLY_CFG",
    "wint4_afp16": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "wfp4_afp8": "W4A8_MXFP4_FP8_CFG",
    "wnvfp4_afp8": "W4A8_NVFP4_FP8_CFG",
    "wnvfp4_afp16": "W4A16_NVFP4_CFG",
    "wfp4_afp4": "MXFP4_DEFAULT_CFG",
    "wnvfp4_anvfp4": "NVFP4_DEFAULT_CFG",
}


def quantizers(config):
    """Attributes in the last entry of each quantizer without the cost-only key, None if off."""
    found = dict.fromkeys((WEIGHT_QUANTIZER, INPUT_QUANTIZER))
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] in found and not entry.get("parent_class"):
            attributes = {k: v for k, v in entry.get("cfg", {}).items() if k != "effective_bits"}
            found[entry["quantizer_name"]] = attributes if entry.get("enable", True) else None
    return found


def test_grid_is_every_weight_with_every_activation_and_four_more():
    weights, activations = ("fp4", "nvfp4", "fp8", "int8", "int4"), ("fp16", "fp8", "int8", "int4")
    grid = [f"w{weight}_a{activation}" for weight in weights for activation in activations]
    more = ["wfp4_afp4", "wnvfp4_anvfp4", "wfp16_afp8", "wfp16_aint8"]
    assert [pair.name for pair in PAIRS.values()] == list(PAIRS) == grid + more
    assert len({pair.format_name for pair in PAIRS.values()}) == len(PAIRS)


def test_pair_is_named_by_its_preset_or_marked_experimental():
    assert {p.name: p.format_name for p in PAIRS.values() if hasattr(mtq, p.format_name)} == (
        MODELOPT_NAMES
    )
    assert {p.name for p in PAIRS.values() if not p.experimental} == set(MODELOPT_NAMES)


@pytest.mark.parametrize(
    ("weight", "activation", "name"),
    [
        ("fp4", "fp16", "MXFP4_WEIGHT_ONLY_CFG"),
        ("int4", "int8", "INT4_WEIGHT_INT8_ACT_CFG"),
        ("nvfp4", "int4", "NVFP4_WEIGHT_INT4_ACT_CFG"),
        ("fp16", "int8", "INT8_ACT_ONLY_CFG"),
    ],
)
def test_pair_without_preset_has_a_stable_name_of_this_package(weight, activation, name):
    assert composed_format_name(weight, activation) == name
    pair = PAIRS[f"w{weight}_a{activation}"]
    assert (pair.format_name, pair.experimental) == (name, True)


@pytest.mark.parametrize(
    ("module", "is_left_out"),
    [
        ("lm_head", True),
        ("model.visual.blocks.0.mlp.linear_fc1", True),
        ("model.layers.0.mlp.shared_expert_gate", True),
        ("model.layers.0.mlp.gate", True),
        ("model.layers.0.mlp.gate_proj", False),
        ("model.layers.0.mlp.shared_expert.gate_proj", False),
    ],
)
def test_modules_that_every_preset_leaves_out(module, is_left_out):
    assert is_excluded(module) is is_left_out


def test_int4_activations_have_one_scale_per_tensor():
    int4 = {"num_bits": 4, "axis": None}
    assert quantizers(compose("fp16", "int4")) == {WEIGHT_QUANTIZER: None, INPUT_QUANTIZER: int4}


def test_changing_a_composed_config_changes_no_later_one():
    before = repr(compose("fp4", "fp4"))
    for entry in compose("fp4", "fp4")["quant_cfg"][1:3]:
        entry["cfg"]["block_sizes"].clear()
        entry["cfg"].clear()
    assert repr(compose("fp4", "fp4")) == before


@pytest.mark.parametrize("name", MODELOPT_NAMES)
def test_composed_pair_equals_the_installed_preset_of_its_name(name):
    ours = compose(PAIRS[name].weight, PAIRS[name].activation)
    theirs = getattr(mtq, PAIRS[name].format_name)
    expected = quantizers(theirs)
    if name == "wnvfp4_afp8":  # declares blocks of 32; ModelOpt's Triton kernel always uses 16
        blocks = expected[WEIGHT_QUANTIZER]["block_sizes"]
        assert blocks[-1] == 32
        expected[WEIGHT_QUANTIZER] |= {"block_sizes": blocks | {-1: 16}}
    assert quantizers(ours) == expected
    assert len(ours["quant_cfg"]) == 27
    assert ours["quant_cfg"][3:] == list(theirs["quant_cfg"])[-24:]
    assert ours["algorithm"] == theirs["algorithm"]
