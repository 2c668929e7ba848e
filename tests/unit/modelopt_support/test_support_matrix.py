"""The support matrix: status, aliases and padded layers of each combination."""

import pytest
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.case import Combination
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support.status import Status
from pytest_autoquant.modelopt_support.support_matrix import (
    PaddedLayer,
    padded_layers,
    support_matrix,
)
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.scoring.configurations import Configurations

VOCABULARY = load_vocabulary()


def combination(pair, granularity):
    return Combination(
        pair=VOCABULARY.pairs[pair], granularity=VOCABULARY.granularities[granularity]
    )


def test_alias_names_the_first_supported_combination_with_an_equal_config():
    first = combination("wint8_afp16", "default")
    grouped = combination("wint8_afp16", "w_group64")
    alias = combination("wint8_afp16", "w_per_out_channel")
    inert = combination("wint8_afp16", "a_per_token_dynamic")
    refused = combination("wfp4_afp16", "w_per_tensor")
    configs = Configurations("cpu", "fp32", lambda phase, done, total: None)
    cells = support_matrix(configs, (inert, first, grouped, alias, refused))
    assert [(each.combination, each.support.status, each.alias_of) for each in cells] == [
        (inert, Status.NO_EFFECT, None),
        (first, Status.SUPPORTED, None),
        (grouped, Status.SUPPORTED, None),
        (alias, Status.SUPPORTED, first),
        (refused, Status.UNSUPPORTED, None),
    ]


@pytest.mark.parametrize(
    ("pair", "granularity", "expected"),
    [
        ("wint4_afp16", "w_group128", [("layer", 320, 384), ("experts", 64, 128)]),
        ("wint4_afp16", "w_group64", []),
    ],
)
def test_width_that_is_not_whole_blocks_is_padded(pair, granularity, expected):
    shape = {"module_type": "Linear", "out_features": 8}
    linears = [
        Linear(name=name, in_features=widths[0], input_widths=widths, **shape)
        for name, widths in (("layer", (320,)), ("experts", (256, 64)), ("other", (128,)))
    ]
    config = resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
    names = {"granularity": granularity, "weight_dtype": "int4"}
    assert padded_layers([config, config], linears) == tuple(
        PaddedLayer(linear=linear, in_features=width, padded_to=padded, **names)
        for linear, width, padded in expected
    )
