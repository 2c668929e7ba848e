"""As what ModelOpt exports each config, and which exports would stand for something else."""

import modelopt.torch.quantization as mtq
import pytest
import torch
from builders import linear
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.exportable import ALGORITHMS, ExportProbe
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.modelopt_support.presets import load_preset
from pytest_autoquant.models.registry import REGISTRY
from scheme_model import OUT, VOCABULARY, config_of, export_scheme, formats_of

COMPUTED = {
    "FP8": "fp8 weights (a scale per tensor) and fp8 activations (a scale per tensor)",
    "FP8_PER_CHANNEL_PER_TOKEN": (
        "fp8 weights (a scale per output channel) and fp8 activations (a scale per token)"
    ),
    "W4A16_AWQ": "int4 weights (a scale per block) and fp16 activations (a scale per nothing)",
    "W8A8_SQ_PER_CHANNEL": (
        "int8 weights (a scale per output channel) and int8 activations (a scale per tensor)"
    ),
}


def square_blocks():
    pair = QuantPair(
        name="squares",
        weight="fp8",
        activation="fp16",
        format_name="FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
        experimental=True,
        from_preset=True,
    )
    return resolve(pair, DEFAULT, load_preset(pair))


@pytest.fixture
def probe():
    return ExportProbe(torch.device("cpu"))


@pytest.mark.parametrize(
    ("candidate", "algorithm"),
    [
        ("wfp8_afp8-recipe_match_channel_token", "FP8_PER_CHANNEL_PER_TOKEN"),
        ("wint8_aint8", "W8A8_SQ_PER_CHANNEL"),
        ("wint8_afp16", "W8A16"),
        ("wint4_afp16-w_group64", "W4A16_AWQ"),
    ],
)
def test_config_with_an_export_of_its_own_is_exportable(probe, candidate, algorithm):
    assert probe.algorithm(config_of(candidate)) == algorithm
    assert probe.problem(config_of(candidate)) is None


@pytest.mark.parametrize(
    ("candidate", "algorithm"),
    [
        ("wint4_aint8", "W4A16_AWQ"),
        ("wint8_aint4", "W8A8_SQ_PER_CHANNEL"),
        ("wfp8_aint8", "FP8"),
        ("wfp8_afp8-a_per_token_dynamic", "FP8"),
        ("wfp8_afp8-w_per_out_channel", "FP8_PER_CHANNEL_PER_TOKEN"),
        ("wfp8_afp8-w_per_in_channel", "FP8"),
    ],
)
def test_config_that_a_runtime_would_compute_differently_is_refused(probe, candidate, algorithm):
    pair, _, granularity = candidate.partition("-")
    assert probe.problem(config_of(candidate)) == (
        f"ModelOpt exports {pair} with {granularity or 'default'} as {algorithm}, for which a "
        f"runtime computes {COMPUTED[algorithm]}"
    )


@pytest.mark.parametrize("candidate", ["wfp16_aint8", "wint4_afp16-w_per_out_channel"])
def test_config_without_an_export_is_refused(probe, candidate):
    pair, _, granularity = candidate.partition("-")
    assert probe.algorithm(config_of(candidate)) is None
    assert probe.problem(config_of(candidate)) == (
        f"ModelOpt has no export of {pair} with {granularity or 'default'} that can be verified"
    )


def test_built_in_pair_is_exportable_only_as_its_own_dtypes(probe):
    for name, pair in VOCABULARY.pairs.items():
        if "fp4" in pair.weight:
            continue  # runs on CUDA only: test_export_on_cuda.py
        scalings = ALGORITHMS.get(probe.algorithm(config_of(name)), ())
        is_own = [scaling.dtype for scaling in scalings] == [pair.weight, pair.activation]
        assert (probe.problem(config_of(name)) is None) == is_own, name


@pytest.mark.parametrize(
    "candidate", ["wint8_afp16-w_per_in_channel", "wint8_aint8-a_per_hidden_channel"]
)
def test_config_whose_export_would_fail_is_refused(probe, tiny, calibration, tmp_path, candidate):
    formats = formats_of((candidate, OUT))
    with pytest.raises(ExportError):
        export_scheme(tiny, REGISTRY["tiny-qwen3-vl"], formats, calibration, tmp_path)
    assert probe.problem(config_of(candidate)) is not None


def test_format_that_does_not_run_on_the_device_is_not_exportable(probe):
    assert probe.problem(config_of("wfp4_afp8")) == (
        "ModelOpt exports wfp4_afp8 with default as W4A8_MXFP4_FP8, but cannot quantize a weight "
        "here: RuntimeError: Skipping extension modelopt_cuda_ext_mx because CUDA is not available."
    )


def test_probe_leaves_the_global_random_numbers_alone(probe):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert probe.problem(config_of("wint8_afp16")) is None
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("candidate", "shape", "problem"),
    [
        ("wint4_afp16", (576, 576), "blocks of 128 do not divide the input width 576"),
        ("wint4_afp16", (576, 1536), None),
        ("wint4_afp16-w_group64", (576, 576), None),
        ("wint4_afp16-w_group64", (576, 200), "blocks of 64 do not divide the input width 200"),
        (
            "wint4_afp16",
            (301, 128),
            "the export of 301 outputs and 128 inputs fails: AssertionError: Cannot pack weight. "
            "Out dimension 301 is not an even number.",
        ),
        ("fp8_squares", (576, 200), None),  # blocks of 128 x 128, which ModelOpt exports padded
        ("wfp8_afp8", (301, 200), None),
    ],
)
def test_layer_that_a_format_cannot_be_exported_on(probe, candidate, shape, problem):
    config = square_blocks() if candidate == "fp8_squares" else config_of(candidate)
    assert probe.problem(config) is None
    assert probe.layer_problem(config, linear("x", *shape)) == problem


def test_modelopt_is_asked_once_per_config(probe, monkeypatch):
    quantize, configs = mtq.quantize, []

    def counted(model, config, *rest):
        configs.append(config)
        return quantize(model, config, *rest)

    monkeypatch.setattr(mtq, "quantize", counted)
    for _ in range(2):
        assert probe.problem(config_of("wfp8_afp8")) is None
        assert probe.algorithm(config_of("wfp16_afp8")) is None
    assert len(configs) == 2
