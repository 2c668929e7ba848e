"""llm-compressor's recipe: what it cannot hold is refused, what it holds its own library reads."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.quant_pair import is_excluded
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.recipes.choose import Budget
from pytest_autoquant.recipes.decision import Format
from pytest_autoquant.recipes.exclusions import excluded_modules
from pytest_autoquant.recipes.llm_compressor import recipe, scheme_of
from pytest_autoquant.recipes.refusal import CannotExpressError
from pytest_autoquant.recipes.sources import read_decision
from pytest_autoquant.recipes.tools import recipe_yaml

VOCABULARY = load_vocabulary()
BASELINE = Path(__file__).resolve().parents[3] / "reports" / "baseline" / "tiny-qwen3-vl"
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}


def format_of(pair, granularity="default"):
    config = resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
    return Format.of(f"{pair}-{granularity}", config)


def decided(*cases, bits):
    paths = [BASELINE / case for case in cases]
    return read_decision(paths, Budget(measure="effective_bits", amount=bits), VOCABULARY)


@pytest.mark.parametrize(
    ("pair", "granularity", "scheme"),
    [
        (
            "wfp8_afp8",
            "default",
            {
                "weights": {**FP8, "strategy": "tensor", "dynamic": False},
                "input_activations": {
                    **{**FP8, "strategy": "tensor", "dynamic": False},
                    "observer": "static_minmax",
                },
            },
        ),
        (
            "wint4_aint8",
            "recipe_match_channel_token",
            {
                "weights": {**INT8, "num_bits": 4, "strategy": "channel", "dynamic": False},
                "input_activations": {**INT8, "strategy": "token", "dynamic": True},
            },
        ),
        (
            "wint4_afp16",
            "default",
            {
                "weights": {
                    **INT8,
                    "num_bits": 4,
                    "strategy": "group",
                    "group_size": 128,
                    "dynamic": False,
                }
            },
        ),
        (
            "wnvfp4_anvfp4",
            "default",
            {
                side: {
                    **{"num_bits": 4, "type": "float", "symmetric": True},
                    **{"strategy": "tensor_group", "group_size": 16, "dynamic": dynamic},
                    "scale_dtype": "torch.float8_e4m3fn",
                    **observer,
                }
                for side, dynamic, observer in (
                    ("weights", False, {}),
                    ("input_activations", "local", {"observer": "static_minmax"}),
                )
            },
        ),
    ],
)
def test_formats_have_the_arguments_of_their_scheme(pair, granularity, scheme):
    assert scheme_of(format_of(pair, granularity)) == scheme


@pytest.mark.parametrize(
    ("granularity", "reason"),
    [
        ("w_per_in_channel", "whose weights have a scale per input channel"),
        ("a_per_hidden_channel", "whose activations have a scale per input channel"),
    ],
)
def test_scales_that_it_cannot_hold_are_refused(granularity, reason):
    with pytest.raises(CannotExpressError, match=reason):
        scheme_of(format_of("wfp8_afp8", granularity))
    decision = decided(f"weight-fp8-act-fp8/{granularity}", bits=12)
    with pytest.raises(UsageError) as error:
        recipe(decision)
    assert str(error.value).startswith(
        f"llm-compressor has no form for wfp8_afp8-{granularity}, {reason}: "
    )


def test_ignored_patterns_are_those_that_no_preset_quantizes():
    patterns = [re.compile(each) for each in excluded_modules()]
    names = (
        *("lm_head", "model.visual.blocks.0.attn.qkv", "model.visual.merger.linear_fc1"),
        *("model.language_model.layers.0.mlp.gate", "model.language_model.layers.0.mlp.gate_proj"),
        *("model.language_model.layers.0.self_attn.q_proj", "mtp.layers.0.mlp.up_proj"),
        *("model.layers.0.mlp.shared_expert_gate", "model.layers.0.mlp.shared_expert.up_proj"),
    )
    ignored = {name: any(each.match(name) for each in patterns) for name in names}
    assert ignored == {name: is_excluded(name) for name in names}
    assert set(ignored.values()) == {True, False}


#: Reads a recipe with compressed-tensors, applies it to the embedded model without calibration, and
#: prints the scheme that every linear got.
APPLY = """
import json, sys, yaml
from torch import nn
from builders import load_tiny
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
(stage,) = yaml.safe_load(open(sys.argv[1])).values()
modifier = stage["default_modifiers"]["QuantizationModifier"]
model = load_tiny().module
apply_quantization_config(model, QuantizationConfig.model_validate(modifier))
given = {}
for name, module in model.named_modules():
    if isinstance(module, nn.Linear):
        scheme = getattr(module, "quantization_scheme", None)
        given[name] = None if scheme is None else scheme.model_dump(mode="json")
print(json.dumps(given))
"""


@pytest.fixture(scope="module")
def compressed_tensors(tmp_path_factory):
    """A folder with compressed-tensors, beside the installed torch."""
    folder = tmp_path_factory.mktemp("compressed-tensors")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*install, "--target", str(folder), "compressed-tensors==0.20.0", "loguru>=0.7"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"compressed-tensors cannot be installed: {done.stderr.strip()[-200:]}")
    return folder


def run_with(folder, code, *arguments):
    """Run Python where compressed-tensors is; return its last line, parsed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": ":".join([*sys.path, str(folder)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


#: Formats, and the preset of compressed-tensors that is the same.
PRESETS = {
    "FP8": ("wfp8_afp8", "default"),
    "FP8_DYNAMIC": ("wfp8_afp8", "recipe_match_channel_token"),
    "NVFP4": ("wnvfp4_anvfp4", "default"),
    "NVFP4A16": ("wnvfp4_afp16", "default"),
    "MXFP4": ("wfp4_afp4", "default"),
    "W4A16": ("wint4_afp16", "default"),
}
#: Prints presets by name.
PRESET = """
import json, sys
from compressed_tensors.quantization import preset_name_to_scheme
print(json.dumps([
    preset_name_to_scheme(name, ["Linear"]).model_dump(mode="json") for name in sys.argv[1:]
]))
"""


@pytest.mark.slow
def test_formats_equal_the_presets_of_compressed_tensors(compressed_tensors):
    ours = json.dumps([scheme_of(format_of(*each)) for each in PRESETS.values()])
    read = run_with(compressed_tensors, VALIDATE, ours)
    assert read == run_with(compressed_tensors, PRESET, *PRESETS)


#: Validates schemes, given as JSON, and prints what compressed-tensors read.
VALIDATE = """
import json, sys
from compressed_tensors.quantization import QuantizationScheme
print(json.dumps([
    QuantizationScheme(targets=["Linear"], **scheme).model_dump(mode="json")
    for scheme in json.loads(sys.argv[1])
]))
"""


@pytest.mark.slow
def test_compressed_tensors_reads_every_scheme_of_the_builtin_formats(compressed_tensors):
    schemes = {}
    for pair in VOCABULARY.pairs:
        for granularity in VOCABULARY.granularities:
            with suppress(CannotExpressError, UsageError):
                scheme = scheme_of(format_of(pair, granularity))
                schemes[json.dumps(scheme)] = scheme
    read = run_with(compressed_tensors, VALIDATE, json.dumps([*schemes.values()]))
    strategies = set()
    for scheme, found in zip(schemes.values(), read, strict=True):
        for side, wanted in scheme.items():
            assert wanted.items() <= found[side].items()
            strategies.add(wanted["strategy"])
    assert strategies == {"tensor", "channel", "token", "group", "tensor_group"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "bits"),
    [
        (("weight-fp8-act-fp8/default", "weight-int4-act-int8/w_group64"), 6.5),
        (("weight-int4-act-int8/recipe_match_channel_token",), 8.0),
    ],
)
def test_compressed_tensors_gives_every_linear_the_decided_scheme(
    cases, bits, compressed_tensors, tmp_path
):
    decision = decided(*cases, bits=bits)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_yaml(decision, "llm-compressor"))
    given = run_with(compressed_tensors, APPLY, str(path))
    for group in decision.groups:
        expected = {} if group.format is None else scheme_of(group.format)
        for module in group.modules:
            found = given.pop(module) or {}
            for side in ("weights", "input_activations"):
                wanted, got = expected.get(side), found.get(side)
                assert (wanted is None) == (got is None), (module, side)
                assert wanted is None or wanted.items() <= got.items(), (module, side)
    assert set(given.values()) == {None}
    assert {"lm_head", "model.visual.merger.linear_fc1"} <= given.keys()
    assert yaml.safe_load(path.read_text()) == recipe(decision)
