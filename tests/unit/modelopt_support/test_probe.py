"""What can run, found by running ModelOpt's quantizers."""

import pytest
import torch
from modelopt.torch.quantization.nn import TensorQuantizer
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.case import combinations
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support import probe
from pytest_autoquant.modelopt_support.probe import Prober, probe_tensors
from pytest_autoquant.modelopt_support.status import Status

VOCABULARY = load_vocabulary()
WEIGHT_AXES = (
    "recipe_match_channel_token",
    "w_per_tensor",
    "w_per_out_channel",
    "w_per_in_channel",
)
INPUT_AXES = ("a_per_tensor_static", "a_per_hidden_channel", "a_per_token_dynamic")


def new_prober():
    return Prober(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def prober():
    return new_prober()


def support(prober, pair, granularity="default"):
    return prober.support(
        prober.resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
    )


def expected_status(pair, overlay):
    """The status on a machine without CUDA."""
    is_fp4 = pair.startswith(("wfp4", "wnvfp4"))
    has_fp4_inputs = pair in ("wfp4_afp4", "wnvfp4_anvfp4")
    if is_fp4 and (overlay in WEIGHT_AXES or (has_fp4_inputs and overlay in INPUT_AXES)):
        return Status.UNSUPPORTED
    if (pair.endswith("_afp16") and overlay.startswith("a_")) or (
        pair.startswith("wfp16") and overlay.startswith("w_")
    ):
        return Status.NO_EFFECT
    return Status.NEEDS_CUDA if is_fp4 else Status.SUPPORTED


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
@pytest.mark.parametrize("pair", VOCABULARY.pairs)
def test_status_of_every_combination(prober, pair):
    for overlay in VOCABULARY.granularities:
        assert support(prober, pair, overlay).status is expected_status(pair, overlay), overlay


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
@pytest.mark.parametrize(
    ("pair", "overlay"),
    [
        ("wfp8_afp8", "w_per_in_channel"),
        ("wint4_aint8", "a_per_token_dynamic"),
        ("wint8_afp16", "a_per_token_dynamic"),
        ("wfp4_afp8", "w_group64"),
        ("wfp4_afp8", "w_per_out_channel"),
        ("wfp4_afp4", "a_per_hidden_channel"),
        ("wnvfp4_afp16", "default"),
        ("wnvfp4_afp16", "w_per_tensor"),
    ],
)
def test_status_of_a_combination(prober, pair, overlay):
    assert support(prober, pair, overlay).status is expected_status(pair, overlay)


def test_skip_reason_is_the_status_and_its_cause(prober):
    assert support(prober, "wfp4_afp8", "w_per_out_channel").skip_reason == (
        "unsupported: NotImplementedError: Only support E=4 & M=3 for now."
    )
    assert support(prober, "wint8_afp16", "a_per_token_dynamic").skip_reason == (
        "no-effect: the overlay only touches *input_quantizer, which the pair disables"
    )


@pytest.mark.parametrize(
    ("dtype", "overlay", "lost"),
    [
        ("fp8", "recipe_match_channel_token", "weight"),
        ("fp8", "w_per_tensor", "weight"),
        ("int8", "w_per_in_channel", "weight"),
        ("fp8", "a_per_token_dynamic", "input"),
        ("int8", "a_per_hidden_channel", "input"),
        ("fp8", "w_group64", None),
        ("fp8", "default", None),
    ],
)
def test_overlay_that_takes_the_blocks_of_a_block_format_away_is_unsupported(
    prober, dtype, overlay, lost
):
    """What would run is plain FP8 or INT8 under the name of MXFP8 or MXINT8."""
    pair = QuantPair(
        name="mine",
        weight=dtype,
        activation=dtype,
        format_name=f"MX{dtype.upper()}_DEFAULT_CFG",
        experimental=True,
        from_preset=True,
    )
    config = prober.resolve(pair, VOCABULARY.granularities[overlay])
    assert (config.lost_format is None) == (lost is None)
    if lost is not None:
        assert prober.support(config).skip_reason == (
            f"unsupported: overlay {overlay!r} takes the blocks of 32 of *{lost}_quantizer away, "
            "and with them their scales: what is left is another format"
        )


def test_integer_blocks_are_no_format_of_their_own(prober):
    assert support(prober, "wint4_afp16", "w_per_out_channel").is_supported


def test_attribute_that_changes_no_bits_is_reported_as_ignored(monkeypatch):
    """ModelOpt ignores a block size on NVFP4, which needs CUDA; here 8-bit axes are ignored."""
    stock = TensorQuantizer.set_from_attribute_config

    def without_axis(self, attributes):
        stock(self, attributes)
        self._axis = None if self._num_bits == 8 else self._axis
        self._calibrator._axis = self._axis

    monkeypatch.setattr(TensorQuantizer, "set_from_attribute_config", without_axis)
    prober = new_prober()
    assert support(prober, "wint8_afp16", "w_per_in_channel").skip_reason == (
        "no-effect: ModelOpt accepts axis 1 and ignores it: the quantized weight bits are those "
        "of the default overlay"
    )
    assert support(prober, "wint8_afp16", "w_group64").is_supported


def test_quantizer_that_returns_its_input_has_no_effect(monkeypatch):
    monkeypatch.setattr(TensorQuantizer, "_fake_quantize", lambda self, inputs: inputs)
    assert support(new_prober(), "wint8_afp16").skip_reason == (
        "no-effect: *weight_quantizer returns its input unchanged"
    )


def test_each_quantizer_runs_once(monkeypatch):
    runs, stock = [], probe.quantize_probe

    def counting(config, device, dtype):
        runs.append((config.weight, config.input))
        return stock(config, device, dtype)

    monkeypatch.setattr(probe, "quantize_probe", counting)
    prober = new_prober()
    for overlay in ("default", "w_per_out_channel", "w_group64", "w_group64"):
        assert support(prober, "wint8_aint8", overlay).is_supported
    assert len(runs) == len(set(runs)) == 3  # w_per_out_channel is the default of int8 weights


def test_probe_tensors_are_seeded_and_their_scale_varies_along_every_axis():
    first, second = (probe_tensors(torch.device("cpu"), torch.float32) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    for tensor in (first.weight, first.input):
        for axis in range(tensor.dim()):
            others = [each for each in range(tensor.dim()) if each != axis]
            assert tensor.abs().amax(dim=others).unique().numel() == tensor.shape[axis]


def test_modelopt_accepts_every_effective_config_and_refuses_a_wrong_one(prober):
    for combination in combinations(VOCABULARY):
        prober.check_config(prober.resolve(combination.pair, combination.granularity))
    wrong = {"quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": -3}}]}
    with pytest.raises(
        UsageError, match=r"(?s)refuses wint8_afp16 with default: .*num_bits must be a positive"
    ):
        prober.check_config(resolve(VOCABULARY.pairs["wint8_afp16"], DEFAULT, wrong))
