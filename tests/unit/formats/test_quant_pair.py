"""Quant pairs: the built-in grid and the base configs composed for it."""

import dataclasses

import pytest
from pytest_autoquant.formats.quant_pair import (
    INPUT_QUANTIZER,
    WEIGHT_QUANTIZER,
    QuantPair,
    builtin_pairs,
    compose,
    composed_format_name,
)

PAIRS = builtin_pairs()

MXFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
FP8 = {"num_bits": (4, 3), "axis": None}

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


def quantizer(config, name):
    """Attributes in the last entry of this name without the cost-only key, None if disabled."""
    found = None
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == name and not entry.get("parent_class"):
            found = entry.get("cfg") if entry.get("enable", True) else None
    return found and {key: value for key, value in found.items() if key != "effective_bits"}


def test_the_grid_is_every_weight_with_every_activation_and_four_more():
    weights, activations = ("fp4", "nvfp4", "fp8", "int8", "int4"), ("fp16", "fp8", "int8", "int4")
    grid = [f"w{weight}_a{activation}" for weight in weights for activation in activations]
    more = ["wfp4_afp4", "wnvfp4_anvfp4", "wfp16_afp8", "wfp16_aint8"]
    assert list(PAIRS) == grid + more
    assert [pair.name for pair in PAIRS.values()] == list(PAIRS)


def test_a_pair_is_named_by_its_preset_or_marked_experimental():
    assert {p.name: p.format_name for p in PAIRS.values() if p.is_preset} == MODELOPT_NAMES
    assert {p.name for p in PAIRS.values() if not p.experimental} == set(MODELOPT_NAMES)


@pytest.mark.parametrize(
    ("weight", "activation", "name"),
    [
        ("fp4", "fp16", "MXFP4_WEIGHT_ONLY_CFG"),
        ("fp8", "fp16", "FP8_WEIGHT_ONLY_CFG"),
        ("int8", "fp8", "INT8_WEIGHT_FP8_ACT_CFG"),
        ("int4", "int8", "INT4_WEIGHT_INT8_ACT_CFG"),
        ("nvfp4", "int4", "NVFP4_WEIGHT_INT4_ACT_CFG"),
        ("fp4", "int8", "MXFP4_WEIGHT_INT8_ACT_CFG"),
        ("fp16", "int8", "INT8_ACT_ONLY_CFG"),
    ],
)
def test_a_pair_without_preset_has_a_stable_name_of_this_package(weight, activation, name):
    assert composed_format_name(weight, activation) == name
    pair = PAIRS[f"w{weight}_a{activation}"]
    assert (pair.format_name, pair.is_preset, pair.experimental) == (name, False, True)


def test_no_two_pairs_share_a_format_name():
    assert len({pair.format_name for pair in PAIRS.values()}) == len(PAIRS) == 24


@pytest.mark.parametrize(
    ("pair", "weight", "activation"),
    [
        ("wfp4_aint4", MXFP4, {"num_bits": 4, "axis": None}),
        ("wnvfp4_aint8", NVFP4, {"num_bits": 8, "axis": None}),
        ("wint4_afp8", {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}, FP8),
        ("wint8_afp8", {"num_bits": 8, "axis": 0}, FP8),
        ("wfp8_afp16", FP8, None),
        ("wfp16_aint8", None, {"num_bits": 8, "axis": None}),
        ("wfp4_afp4", MXFP4, MXFP4),
        ("wnvfp4_anvfp4", NVFP4, NVFP4),
    ],
)
def test_a_pair_is_composed_from_its_two_quantizers(pair, weight, activation):
    config = compose(PAIRS[pair].weight, PAIRS[pair].activation)
    assert quantizer(config, WEIGHT_QUANTIZER) == weight
    assert quantizer(config, INPUT_QUANTIZER) == activation


def test_entries_disable_everything_first_and_vision_tower_and_lm_head_last():
    config = compose("int8", "fp16")
    assert config["quant_cfg"] == [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
        {"quantizer_name": "*input_quantizer", "enable": False},
        {"quantizer_name": "*lm_head*", "enable": False},
        {"quantizer_name": "*visual*", "enable": False},
    ]


def test_changing_a_composed_config_changes_no_later_one():
    first = compose("fp4", "fp4")
    for entry in first["quant_cfg"][1:3]:
        entry["cfg"]["block_sizes"].clear()
        entry["cfg"].clear()
    assert quantizer(compose("fp4", "fp4"), WEIGHT_QUANTIZER) == MXFP4
    assert quantizer(compose("fp4", "fp4"), INPUT_QUANTIZER) == MXFP4


def test_a_users_preset_counts_as_preset():
    awq = QuantPair(
        name="w4_awq",
        weight="int4",
        activation="fp16",
        format_name="INT4_AWQ_CFG",
        experimental=False,
        from_preset=True,
    )
    assert awq.is_preset
    assert not dataclasses.replace(awq, from_preset=False).is_preset


@pytest.mark.parametrize("pair_name", MODELOPT_NAMES)
def test_a_composed_pair_equals_the_installed_preset_of_its_name(pair_name):
    import modelopt.torch.quantization as mtq

    pair = PAIRS[pair_name]
    ours, theirs = compose(pair.weight, pair.activation), getattr(mtq, pair.format_name)
    expected = {name: quantizer(theirs, name) for name in (WEIGHT_QUANTIZER, INPUT_QUANTIZER)}
    if pair_name == "wnvfp4_afp8":  # declares blocks of 32; ModelOpt's Triton kernel always uses 16
        assert expected[WEIGHT_QUANTIZER]["block_sizes"][-1] == 32
        expected[WEIGHT_QUANTIZER]["block_sizes"] = NVFP4["block_sizes"]
    assert {name: quantizer(ours, name) for name in expected} == expected
    assert ours["algorithm"] == theirs["algorithm"]
