"""What can run, found by running ModelOpt's quantizers."""

import pytest
import torch
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.case import combinations
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support.probe import Prober, probe_tensors
from pytest_autoquant.modelopt_support.status import Status

VOCABULARY = load_vocabulary()
AXIS_OVERLAYS = (
    "recipe_match_channel_token",
    "w_per_tensor",
    "w_per_out_channel",
    "w_per_in_channel",
)
AXIS_INPUT_OVERLAYS = ("a_per_tensor_static", "a_per_hidden_channel", "a_per_token_dynamic")


def new_prober():
    return Prober(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def prober():
    return new_prober()


def config(prober, pair, granularity):
    return prober.resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])


def support(prober, pair, granularity):
    return prober.support(config(prober, pair, granularity))


def statuses(prober, weights):
    return {
        (pair.name, overlay): support(prober, pair.name, overlay).status
        for pair in VOCABULARY.pairs.values()
        if pair.weight in weights
        for overlay in VOCABULARY.granularities
    }


def test_integer_and_fp8_weights_run_under_every_overlay_of_an_enabled_quantizer(prober):
    found = statuses(prober, ("fp8", "int8", "int4"))
    assert len(found) == 120
    for (pair, overlay), status in found.items():
        is_inert = pair.endswith("_afp16") and overlay.startswith("a_")
        assert status is (Status.NO_EFFECT if is_inert else Status.SUPPORTED), (pair, overlay)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
def test_without_cuda_fp4_is_unsupported_where_no_device_runs_it_and_else_needs_cuda(prober):
    for (pair, overlay), status in statuses(prober, ("fp4", "nvfp4")).items():
        never_runs = overlay in AXIS_OVERLAYS or (
            pair in ("wfp4_afp4", "wnvfp4_anvfp4") and overlay in AXIS_INPUT_OVERLAYS
        )
        if never_runs:
            assert status is Status.UNSUPPORTED, (pair, overlay)
        elif pair.endswith("_afp16") and overlay.startswith("a_"):
            assert status is Status.NO_EFFECT, (pair, overlay)
        else:
            assert status is Status.NEEDS_CUDA, (pair, overlay)


def test_a_refusal_has_modelopts_own_words(prober):
    refused = support(prober, "wfp4_afp8", "w_per_out_channel")
    assert refused.status is Status.UNSUPPORTED
    assert refused.skip_reason == (
        "unsupported: NotImplementedError: Only support E=4 & M=3 for now."
    )


def test_an_overlay_of_a_disabled_quantizer_has_no_effect(prober):
    assert support(prober, "wint8_afp16", "a_per_token_dynamic").skip_reason == (
        "no-effect: the overlay only touches *input_quantizer, which the pair disables"
    )


def test_an_attribute_that_changes_no_bits_is_reported_as_ignored(monkeypatch):
    """ModelOpt ignores a block size on NVFP4, which needs CUDA; here 8-bit axes are ignored."""
    from modelopt.torch.quantization.nn import TensorQuantizer

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


def test_a_quantizer_that_returns_its_input_has_no_effect(monkeypatch):
    from modelopt.torch.quantization.nn import TensorQuantizer

    monkeypatch.setattr(TensorQuantizer, "_fake_quantize", lambda self, inputs: inputs)
    assert support(new_prober(), "wint8_afp16", "default").skip_reason == (
        "no-effect: *weight_quantizer returns its input unchanged"
    )


def test_each_config_runs_once(monkeypatch):
    from pytest_autoquant.modelopt_support import probe

    runs = []
    stock = probe.quantize_probe

    def counting(config, device, dtype):
        runs.append(config.digest)
        return stock(config, device, dtype)

    monkeypatch.setattr(probe, "quantize_probe", counting)
    prober = new_prober()
    for overlay in ("default", "w_per_out_channel", "w_group64", "w_group64"):
        assert support(prober, "wint8_aint8", overlay).is_supported
    assert len(runs) == len(set(runs)) == 2  # w_per_out_channel is the default of int8 weights


def test_probe_tensors_are_seeded_and_their_scale_varies_along_every_axis():
    first, second = (probe_tensors(torch.device("cpu"), torch.float32) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    for tensor in (first.weight, first.input):
        for axis in range(tensor.dim()):
            others = [each for each in range(tensor.dim()) if each != axis]
            assert tensor.abs().amax(dim=others).unique().numel() == tensor.shape[axis]


def test_a_users_preset_is_read_from_the_installed_modelopt(prober):
    import modelopt.torch.quantization as mtq

    pair = QuantPair(
        name="mine",
        weight="int4",
        activation="fp16",
        format_name="INT4_AWQ_CFG",
        experimental=True,
        from_preset=True,
    )
    resolved = prober.resolve(pair, DEFAULT)
    assert resolved.algorithm == mtq.INT4_AWQ_CFG["algorithm"]
    assert prober.support(resolved).is_supported


def test_modelopt_accepts_every_effective_config_and_refuses_a_wrong_one(prober):
    for combination in combinations(VOCABULARY):
        prober.check_config(prober.resolve(combination.pair, combination.granularity))
    wrong = {"quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": -3}}]}
    with pytest.raises(
        UsageError, match=r"(?s)refuses wint8_afp16 with default: .*num_bits must be a positive"
    ):
        prober.check_config(resolve(VOCABULARY.pairs["wint8_afp16"], DEFAULT, wrong))
