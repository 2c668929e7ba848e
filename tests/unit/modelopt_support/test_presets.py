"""Presets of the installed ModelOpt as base configs of a user's pair."""

from dataclasses import replace

import modelopt
import modelopt.torch.quantization as mtq
import pytest
import torch
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.formats.quant_pair import QuantPair, builtin_pairs
from pytest_autoquant.modelopt_support.presets import check_presets, load_preset
from pytest_autoquant.modelopt_support.probe import Prober

PAIRS = builtin_pairs()
OFF = {"quantizer_name": "*", "enable": False}
INT4 = {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}


def user_pair(format_name, weight="int4", activation="fp16"):
    return QuantPair(
        name="mine",
        weight=weight,
        activation=activation,
        format_name=format_name,
        experimental=True,
        from_preset=True,
    )


def test_preset_keeps_modelopts_attributes_and_algorithm():
    prober = Prober(torch.device("cpu"), torch.float32)
    config = prober.resolve(user_pair("INT4_AWQ_CFG"), DEFAULT)
    assert config.algorithm == mtq.INT4_AWQ_CFG["algorithm"]
    assert config.modelopt()["quant_cfg"] == list(mtq.INT4_AWQ_CFG["quant_cfg"])
    assert prober.support(config).is_supported


def test_base_is_compared_with_the_installed_preset(monkeypatch):
    prober = Prober(torch.device("cpu"), torch.float32)
    named = [p.name for p in PAIRS.values() if prober.resolve(p, DEFAULT).is_modelopt_preset]
    assert set(named) == {p.name for p in PAIRS.values() if hasattr(mtq, p.format_name)}
    preset = mtq.FP8_DEFAULT_CFG
    fp8, int8 = PAIRS["wfp8_afp8"], PAIRS["wint8_aint8"]
    more = {"quantizer_name": "*k_proj*", "enable": False}
    for changed in ({"quant_cfg": [*preset["quant_cfg"], more]}, {"algorithm": "mse"}):
        monkeypatch.setattr(mtq, "FP8_DEFAULT_CFG", {**preset, **changed})
        assert not prober.resolve(fp8, DEFAULT).is_modelopt_preset
    monkeypatch.delattr(mtq, "FP8_DEFAULT_CFG")
    assert not prober.resolve(fp8, DEFAULT).is_modelopt_preset
    assert prober.resolve(int8, DEFAULT).is_modelopt_preset


def test_bits_of_a_preset_are_those_of_the_blocks_that_are_executed():
    """W4A8_NVFP4_FP8_CFG declares blocks of 32."""
    prober = Prober(torch.device("cpu"), torch.float32)
    mine = prober.resolve(user_pair("W4A8_NVFP4_FP8_CFG", "fp4", "fp8"), DEFAULT)
    ours = prober.resolve(PAIRS["wnvfp4_afp8"], DEFAULT)
    assert mine.effective_bits == ours.effective_bits == 4.5
    assert mine.stored_bits(48, 40) == ours.stored_bits(48, 40) == 48 * (40 * 4 + 3 * 8) + 32


@pytest.mark.parametrize(
    ("pair", "advised"),
    [
        (
            user_pair("NVFP4_WEIGHT_ONLY_CFG", "fp4"),
            "for NVFP4 use the built-in pair wnvfp4_afp16 (fp4 is MXFP4 here), or give nvfp4",
        ),
        (
            user_pair("NVFP4_OWN_CFG", "fp4", "fp4"),
            "use the built-in pair wnvfp4_anvfp4 (fp4 is MXFP4",
        ),
        (user_pair("MXFP8_WEIGHT_CFG", "fp8"), "leave the pair out, as no dtype composes this"),
        (
            user_pair("INT8_LM_DEFAULT_CFG", "int8", "int8"),
            "'INT8_LM_DEFAULT_CFG' (did you mean 'INT8_DEFAULT_CFG'?); install a version that has "
            "it, or leave format_name out to compose INT8_DEFAULT_CFG",
        ),
    ],
)
def test_advice_for_a_missing_preset_keeps_the_format(pair, advised):
    with pytest.raises(UsageError) as caught:
        load_preset(pair)
    assert advised in str(caught.value)


def test_problems_of_all_presets_come_in_one_message():
    pairs = [replace(user_pair(f"INT{i}_CFG"), name=f"p{i}") for i in (3, 5)]
    with pytest.raises(UsageError) as caught:
        check_presets([*pairs, user_pair("INT4_AWQ_CFG")])
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["pair 'p3'", "pair 'p5'"]


@pytest.mark.parametrize("name", ["INT3_CFG", "quantize", "__name__"])
def test_preset_that_modelopt_lacks_is_refused_with_the_version(name):
    with pytest.raises(UsageError, match=f"{modelopt.__version__} has no preset '{name}'"):
        load_preset(user_pair(name))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (user_pair("INT8_DEFAULT_CFG"), r"INT8_DEFAULT_CFG sets \*weight_quantizer to 8"),
        (
            user_pair("INT8_WEIGHT_ONLY_CFG", weight="int8", activation="int8"),
            r"sets \*input_quantizer to disabled, .* weight int8 and activation int8",
        ),
    ],
)
def test_preset_of_other_dtypes_than_the_pair_is_refused(pair, message):
    with pytest.raises(UsageError, match=message):
        load_preset(pair)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [OFF, {"quantizer_name": "*mlp*weight_quantizer", "cfg": INT4}],
            r"quantizes only what matches '\*mlp\*weight_quantizer'",
        ),
        (
            [{"quantizer_name": "*weight_quantizer", "cfg": INT4}],
            "does not start by disabling every quantizer",
        ),
        ([], "does not start by disabling every quantizer"),
        (
            [
                OFF,
                {"quantizer_name": "*weight_quantizer", "cfg": INT4},
                {"quantizer_name": "*q_proj*", "enable": False},
            ],
            r"leaves out what matches '\*q_proj\*'",
        ),
    ],
)
def test_preset_of_some_layers_or_with_defaults_on_is_refused(monkeypatch, entries, message):
    monkeypatch.setattr(mtq, "MY_CFG", {"quant_cfg": entries, "algorithm": "max"}, raising=False)
    with pytest.raises(UsageError, match=message):
        load_preset(user_pair("MY_CFG"))
