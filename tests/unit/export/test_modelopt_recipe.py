"""ModelOpt's recipe, made without the model, quantizes what our own scheme quantizes."""

from pathlib import Path

import modelopt.torch.quantization as mtq
import pytest
import torch
import yaml
from pytest_autoquant.export.apply_scheme import applied
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.next_token import next_token_logits
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.recipes.choose import Budget
from pytest_autoquant.recipes.sources import read_decision
from pytest_autoquant.recipes.tools import recipe_yaml
from scheme_model import choice_of, mine, quantizers

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
