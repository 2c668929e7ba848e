"""ModelOpt's recipe, made without the model, quantizes what our own scheme quantizes."""

from pathlib import Path

import modelopt.torch.quantization as mtq
import pytest
import torch
import yaml
from builders import load_tiny, save_mixture
from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.errors import UsageError
from pytest_autoquant.export.apply_scheme import applied
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.next_token import next_token_logits
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.recipes.choose import Budget
from pytest_autoquant.recipes.decision import DecidedGroup, Decision, Format
from pytest_autoquant.recipes.sources import read_decision
from pytest_autoquant.recipes.tools import recipe_yaml
from scheme_model import LAYERS, choice_of, formats_of, mine, quantizers

BASELINE = Path(__file__).resolve().parents[3] / "reports" / "baseline" / "tiny-qwen3-vl"
MEASURED = [BASELINE / f"weight-{each}" / "default" for each in ("fp8-act-fp8", "int4-act-int8")]
#: What makes a quantizer, and not the numbers it was calibrated to.
ATTRIBUTES = ("num_bits", "axis", "block_sizes", "_dynamic")


def described(module):
    """Return the attributes of every enabled quantizer, by name."""
    return {
        name: {key: getattr(each, key) for key in ATTRIBUTES}
        for name, each in quantizers(module).items()
        if each.is_enabled
    }


def test_recipe_of_recorded_cases_equals_the_measured_scheme(tiny, bench, calibration):
    choice = choice_of(bench, mine("wfp8_afp8", "wint4_aint8", amount=6.0))
    with applied(tiny, choice.formats, calibration):
        ours = described(tiny.module)
    decision = read_decision(
        MEASURED, Budget(measure="effective_bits", amount=6.0), load_vocabulary()
    )
    recipe = yaml.safe_load(recipe_yaml(decision, "modelopt"))

    def forward_loop(module):
        with torch.no_grad():
            for batch in calibration:
                next_token_logits(module, tiny.tensor(batch))

    with preserved(tiny.module):
        mtq.quantize(tiny.module, recipe, forward_loop)
        theirs = described(tiny.module)
    assert theirs == ours
    assert len({str(each) for each in ours.values()}) > 2
    assert [group.format and group.format.name for group in decision.groups] == [
        None if i is None else choice.case.scheme.candidates[i] for i in choice.allocation.chosen
    ]
    assert decision.score == pytest.approx(choice.allocation.score, rel=1e-4)


def test_recipe_quantizes_the_experts_that_a_scheme_quantizes(calibration, tmp_path):
    model = load_tiny(str(save_mixture(tmp_path)), random_seed=0)
    experts, down = (f"{LAYERS}.0.mlp.experts",), (f"{LAYERS}.0.self_attn.o_proj",)
    formats = formats_of(("wfp8_afp8", experts), ("wint4_afp16", down))
    with applied(model, formats, calibration):
        ours = described(model.module)
    groups = tuple(
        DecidedGroup(name=each.modules[0], modules=each.modules, format=format)
        for each in formats
        for format in [Format.of(each.config.pair.name, each.config)]
    )
    rule = Scheme(
        name="mine",
        candidates=tuple(group.format.name for group in groups),
        measure="effective_bits",
        amount=8.0,
    )
    decision = Decision(
        model="mixture",
        digest=None,
        candidates=tuple(group.format for group in groups),
        rule=rule,
        method=None,
        groups=groups,
        score=0.0,
        effective_bits=8.0,
    )
    with preserved(model.module):
        mtq.quantize(model.module, yaml.safe_load(recipe_yaml(decision, "modelopt")), None)
        assert described(model.module) == ours
    assert {name.startswith(experts[0]) for name in ours} == {True, False}
    with pytest.raises(UsageError, match="calls each expert of a mixture by a name"):
        recipe_yaml(decision, "llm-compressor")
