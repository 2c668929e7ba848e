"""ModelOpt's ``quant_cfg`` in its two forms."""

import pytest
from drawn_configs import bases, dict_form, list_form
from hypothesis import given
from pytest_autoquant.formats.quant_cfg import active_entry, covers, entry_list
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER

INT8 = {"num_bits": 8, "axis": 0}
OFF = ("*", None, None, False)
WEIGHT = (WEIGHT_QUANTIZER, None, INT8, True)


@pytest.mark.parametrize("form", [list_form, dict_form])
@given(base=bases)
def test_either_form_becomes_the_same_list(form, base):
    quant_cfg = form(*base)["quant_cfg"]
    before = repr(quant_cfg)
    entries = entry_list(quant_cfg)
    assert entries == list_form(*base)["quant_cfg"]
    for entry in entries:
        entry.get("cfg", {}).clear()
    assert repr(quant_cfg) == before


def test_default_of_the_dict_form_comes_first_although_presets_wrote_it_last():
    quant_cfg = dict_form([WEIGHT, ("*lm_head*", None, None, False), OFF])["quant_cfg"]
    names = [entry["quantizer_name"] for entry in entry_list(quant_cfg)]
    assert (list(quant_cfg)[-1], names) == ("default", ["*", WEIGHT_QUANTIZER, "*lm_head*"])


def test_one_list_may_hold_a_dict_form():
    assert entry_list([{"default": {"enable": False}}, {WEIGHT_QUANTIZER: INT8}]) == [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": WEIGHT_QUANTIZER, "cfg": INT8},
    ]


@pytest.mark.parametrize(
    ("rows", "index"),
    [
        ([OFF, WEIGHT], 1),
        ([WEIGHT, OFF], None),
        ([], None),
        ([WEIGHT, WEIGHT], 1),
        ([WEIGHT, OFF, (WEIGHT_QUANTIZER, None, None, True)], 0),
        ([WEIGHT, (WEIGHT_QUANTIZER, None, INT8, False)], None),
        ([WEIGHT, (WEIGHT_QUANTIZER, "nn.Embedding", INT8, True)], 0),
        ([WEIGHT, (INPUT_QUANTIZER, None, INT8, True)], 0),
        ([("*", None, INT8, True)], 0),
    ],
)
def test_last_entry_that_matches_configures_or_disables(rows, index):
    assert active_entry(list_form(rows)["quant_cfg"], WEIGHT_QUANTIZER) == index


@pytest.mark.parametrize(
    ("entry_pattern", "is_covered"),
    [("*", True), ("*_quantizer", True), ("*input_quantizer", False), ("*mlp*weight_q*", False)],
)
def test_pattern_covers_every_weight_quantizer_or_not(entry_pattern, is_covered):
    assert covers(entry_pattern, WEIGHT_QUANTIZER) is is_covered
