"""AutoRound and GPTQModel: what they cannot hold is refused, what they hold they read."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from environments import create_beside, install_into
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.recipes import auto_round, gptqmodel
from pytest_autoquant.recipes.choose import Budget
from pytest_autoquant.recipes.decision import Format
from pytest_autoquant.recipes.refusal import CannotExpressError
from pytest_autoquant.recipes.sources import read_decision
from pytest_autoquant.recipes.tools import recipe_yaml

VOCABULARY = load_vocabulary()
ROOT = Path(__file__).resolve().parents[3]
BASELINE = ROOT / "reports" / "baseline" / "tiny-qwen3-vl"
GROUPS_OF_64 = {"bits": 8, "group_size": 64, "sym": True}


def decided(*cases, bits):
    paths = [BASELINE / case for case in cases]
    return read_decision(paths, Budget(measure="effective_bits", amount=bits), VOCABULARY)


def test_auto_round_lists_every_linear_with_its_format():
    decision = decided("weight-int4-act-int8/recipe_match_channel_token", bits=8)
    made = auto_round.recipe(decision)
    assert made["scheme"] == "BF16"
    (format,) = decision.formats
    for module in decision.modules_in(format):
        assert made["layer_config"][module] == {
            **{"bits": 4, "group_size": -1, "sym": True, "data_type": "int"},
            **{"act_bits": 8, "act_group_size": -1, "act_sym": True, "act_data_type": "int"},
            "act_dynamic": True,
        }
    assert {made["layer_config"][name]["bits"] for name in decision.modules_in(None)} == {16}
    assert len(made["layer_config"]) == 42


def test_gptqmodel_skips_what_stays_in_16_bits_by_name():
    decision = decided("weight-int8-act-fp16/w_group64", bits=12)
    made = gptqmodel.recipe(decision)
    (format,) = decision.formats
    name, kept = decision.modules_in(format)[0], decision.modules_in(None)[0]
    assert made["dynamic"]["+:^" + name.replace(".", r"\.") + "$"] == GROUPS_OF_64
    assert made["dynamic"]["-:^" + kept.replace(".", r"\.") + "$"] == {}
    assert {"-:.*lm_head", "-:.*visual"} <= made["dynamic"].keys()


@pytest.mark.parametrize(
    ("tool", "case", "reason"),
    [
        (auto_round, "weight-int4-act-int8/w_per_in_channel", "weights have a scale per input"),
        (auto_round, "weight-int4-act-int8/default", "int activations have a scale per tensor"),
        (gptqmodel, "weight-int4-act-int8/w_group64", "which quantizes activations"),
        (gptqmodel, "weight-int8-act-fp16/w_per_tensor", "weights have a scale per tensor"),
        (gptqmodel, "weight-int8-act-fp16/w_per_in_channel", "a scale per input channel"),
    ],
)
def test_what_they_cannot_hold_is_refused_by_name(tool, case, reason):
    decision = decided(case, bits=12)
    (format,) = decision.formats
    with pytest.raises(UsageError, match=f"has no form for {format.name}, .*{reason}.* linear"):
        tool.recipe(decision)
    with pytest.raises(UsageError, match="every layer group stays in 16 bits"):
        tool.recipe(decided(case, bits=16))


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment with AutoRound and GPTQModel, and the installed torch.

    GPTQModel asks for a newer torch and newer transformers than are tested here; its configs need
    neither.
    """
    python = create_beside(tmp_path_factory.mktemp("tools") / "environment")
    pins = [f"{name}=={version_of(python, name)}" for name in ("torch", "transformers")]
    others = ("pypcre", "logbar", "device-smi", "threadpoolctl", "tokenicer", "defuser")
    problem = install_into(python, "auto-round==0.15.1", "pillow", *pins) or install_into(
        python, "--no-deps", "gptqmodel==7.7.0", *others
    )
    if problem:
        pytest.skip(f"AutoRound and GPTQModel cannot be installed: {problem}")
    return python


def version_of(python, name):
    code = f"from importlib.metadata import version; print(version('{name}').partition('+')[0])"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def run(python, code, *arguments):
    """Run Python; return its last line, parsed as JSON."""
    done = subprocess.run(
        [python, "-c", code, *arguments],
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": f"{ROOT / 'harness'}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


#: Resolves a recipe with AutoRound for the embedded model, and prints what every linear got.
RESOLVE = """
import json, sys, yaml
from torch import nn
from builders import load_tiny
from auto_round.compressors.config_resolution import ResolvedScheme
from auto_round.compressors.layer_config_resolver import resolve_layer_config
from auto_round.schemes import preset_name_to_scheme
recipe = yaml.safe_load(open(sys.argv[1]))
model = load_tiny().module
scheme = ResolvedScheme.from_scheme(preset_name_to_scheme(recipe["scheme"]), recipe["scheme"])
found = resolve_layer_config(model=model, scheme=scheme, layer_config=recipe["layer_config"])
print(json.dumps({
    name: dict(found.get(name, {}))
    for name, module in model.named_modules() if isinstance(module, nn.Linear)
}, default=str))
"""


@pytest.mark.slow
def test_auto_round_gives_every_linear_the_decided_format(python, tmp_path):
    cases = ("weight-fp8-act-fp8/default", "weight-int4-act-int8/recipe_match_channel_token")
    decision = decided(*cases, bits=6.5)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_yaml(decision, "auto-round"))
    found = run(python, RESOLVE, str(path))
    wanted = auto_round.recipe(decision)["layer_config"]
    assert len(decision.formats) == 2
    for module, form in wanted.items():
        assert form.items() <= found.pop(module).items(), module
    assert {form.get("bits", 16) for form in found.values()} == {16}
    assert {"lm_head", "model.visual.merger.linear_fc1"} <= found.keys()


#: Prints whether AutoRound has a function for each dtype of weights and activations.
FUNCTIONS = """
import json, sys
from auto_round.data_type import get_quant_func
print(json.dumps([
    get_quant_func(dtype, bits, True, disable_opt_rtn=True, group_size=size, iters=200)[1]
    for dtype, bits, size in json.loads(sys.argv[1])
]))
"""


@pytest.mark.slow
def test_auto_round_has_a_function_for_every_dtype_of_the_builtin_formats(python):
    wanted = set()
    for form in forms_of(auto_round):
        wanted.add((form["data_type"], form["bits"], form["group_size"]))
        if form["act_bits"] < 16:
            wanted.add((form["act_data_type"], form["act_bits"], form["act_group_size"]))
    assert {dtype for dtype, _, _ in wanted} >= {"int", "fp", "mx_fp", "nv_fp"}
    assert all(run(python, FUNCTIONS, json.dumps(sorted(wanted))))


def forms_of(tool):
    """Return the forms of every built-in format that a tool has one for."""
    for pair in VOCABULARY.pairs.values():
        for granularity in VOCABULARY.granularities.values():
            format = Format.of(pair.name, resolve(pair, granularity))
            with suppress(CannotExpressError):
                yield tool.form_of(format)


#: Prints the rule that GPTQModel finds for names of modules, false for one that it skips.
RULES = """
import json, sys, yaml
from gptqmodel.quantization.config import QuantizeConfig
config = QuantizeConfig(**yaml.safe_load(open(sys.argv[1])))
print(json.dumps({name: config.dynamic_get(name) for name in json.loads(sys.argv[2])}))
"""


@pytest.mark.slow
def test_gptqmodel_finds_the_decided_rule_of_every_linear(python, tmp_path):
    decision = decided("weight-int8-act-fp16/w_group64", bits=12)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_yaml(decision, "gptqmodel"))
    (format,) = decision.formats
    expected = dict.fromkeys(decision.modules_in(format), GROUPS_OF_64)
    expected |= dict.fromkeys(
        (*decision.modules_in(None), "lm_head", "model.visual.blocks.0.attn.qkv"), False
    )
    assert run(python, RULES, str(path), json.dumps([*expected])) == expected
    assert {*map(str, expected.values())} == {str(GROUPS_OF_64), "False"}
