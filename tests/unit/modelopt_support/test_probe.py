"""What can run, found out by running ModelOpt's quantizers."""

import pytest
import torch
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import effective_config
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.case import combinations
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support.probe import Prober, misfits, preset
from pytest_autoquant.modelopt_support.status import Status

VOCABULARY = load_vocabulary()
RUNS_EVERYWHERE = ("fp8", "int8", "int4")
AXIS_OVERLAYS = (
    "recipe_match_channel_token",
    "w_per_tensor",
    "w_per_out_channel",
    "w_per_in_channel",
)
AXIS_INPUT_OVERLAYS = ("a_per_tensor_static", "a_per_hidden_channel", "a_per_token_dynamic")


@pytest.fixture(scope="module")
def prober():
    return Prober(torch.device("cpu"), torch.float32)


def support(prober, pair, granularity):
    return prober.support(
        prober.resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
    )


def statuses(prober, weights):
    return {
        combination.test_id: prober.support(
            prober.resolve(combination.pair, combination.granularity)
        ).status
        for combination in combinations(VOCABULARY)
        if combination.pair.weight in weights
    }


def test_integer_and_fp8_weights_run_under_every_overlay_that_touches_something(prober):
    found = statuses(prober, RUNS_EVERYWHERE)
    idle = {name for name in found if "_afp16-a_" in name}
    assert {name for name, status in found.items() if status is Status.NO_EFFECT} == idle
    assert set(found.values()) == {Status.SUPPORTED, Status.NO_EFFECT}
    assert len(found) == 120


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
def test_without_cuda_the_fp4_family_needs_it_unless_no_device_could_run_it(prober):
    for name, status in statuses(prober, ("fp4", "nvfp4")).items():
        pair, granularity = name.split("-")
        never = granularity in AXIS_OVERLAYS
        never |= pair in ("wfp4_afp4", "wnvfp4_anvfp4") and granularity in AXIS_INPUT_OVERLAYS
        if never:
            assert status is Status.UNSUPPORTED, name
        elif pair.endswith("_afp16") and granularity.startswith("a_"):
            assert status is Status.NO_EFFECT, name
        else:
            assert status is Status.NEEDS_CUDA, name


def test_a_refusal_carries_modelopts_own_words(prober):
    refused = support(prober, "wfp4_afp8", "w_per_out_channel")
    assert refused.status is Status.UNSUPPORTED
    assert refused.reason.startswith("NotImplementedError: ")
    assert len(refused.reason) > len("NotImplementedError: no message")


def test_an_overlay_on_a_disabled_quantizer_has_no_effect(prober):
    idle = support(prober, "wint8_afp16", "a_per_token_dynamic")
    assert idle.status is Status.NO_EFFECT
    assert "*input_quantizer" in idle.reason


def test_a_knob_that_moves_no_bits_is_reported_as_ignored(prober, monkeypatch):
    """An ignored block size needs the NVFP4 kernel; here a quantizer that ignores its axis."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    stock = TensorQuantizer.set_from_attribute_config

    def deaf_to_axis(self, attributes):
        stock(self, attributes)
        self._axis = None if self._num_bits == 8 else self._axis
        self._calibrator._axis = self._axis

    monkeypatch.setattr(TensorQuantizer, "set_from_attribute_config", deaf_to_axis)
    fresh = Prober(torch.device("cpu"), torch.float32)
    ignored = support(fresh, "wint8_afp16", "w_per_in_channel")
    assert ignored.status is Status.NO_EFFECT
    assert "axis 1" in ignored.reason
    assert support(fresh, "wint8_afp16", "w_group64").status is Status.SUPPORTED


def test_a_quantizer_that_returns_its_input_has_no_effect(prober, monkeypatch):
    from modelopt.torch.quantization.nn import TensorQuantizer

    monkeypatch.setattr(TensorQuantizer, "_fake_quantize", lambda self, inputs: inputs)
    fresh = Prober(torch.device("cpu"), torch.float32)
    assert support(fresh, "wint8_afp16", "default").reason == (
        "*weight_quantizer returns its input unchanged"
    )


def user_pair(format_name, weight="int4", activation="fp16"):
    return QuantPair(
        name="mine",
        weight=weight,
        activation=activation,
        format_name=format_name,
        experimental=True,
        from_preset=True,
    )


def test_a_users_preset_is_read_from_the_installed_modelopt(prober):
    import modelopt.torch.quantization as mtq

    config = prober.resolve(user_pair("INT4_AWQ_CFG"), Granularity(name="default"))
    assert config.algorithm == mtq.INT4_AWQ_CFG["algorithm"]
    assert prober.support(config).status is Status.SUPPORTED


def test_a_preset_that_modelopt_lacks_is_refused_with_the_version():
    import modelopt

    with pytest.raises(UsageError, match=f"{modelopt.__version__} has no preset 'INT3_CFG'"):
        preset(user_pair("INT3_CFG"))


def test_a_preset_of_other_dtypes_than_the_pair_says_is_refused():
    with pytest.raises(UsageError, match=r"INT8_DEFAULT_CFG sets \*weight_quantizer to 8"):
        preset(user_pair("INT8_DEFAULT_CFG"))


def test_modelopt_validates_every_effective_config(prober):
    for combination in combinations(VOCABULARY):
        prober.accepts(prober.resolve(combination.pair, combination.granularity))


def test_a_config_that_modelopt_refuses_is_an_error_in_its_words(prober):
    pair = VOCABULARY.pairs["wint8_afp16"]
    broken = effective_config(
        pair,
        Granularity(name="default"),
        {"quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": -3}}]},
    )
    with pytest.raises(UsageError, match="num_bits must be a positive integer"):
        prober.accepts(broken)


@pytest.mark.parametrize(("width", "padded"), [(256, None), (384, None), (320, 384), (100, 128)])
def test_misfits_gives_the_width_padded_to_whole_blocks(width, padded):
    pair, overlay = VOCABULARY.pairs["wint4_afp16"], VOCABULARY.granularities["w_group128"]
    assert misfits(effective_config(pair, overlay), width) == padded
