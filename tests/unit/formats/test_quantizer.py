"""Attributes of one quantizer: what they mean, and when two of them are equal."""

import copy

import pytest
from drawn_configs import attributes
from hypothesis import given
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.quantizer import ATTRIBUTE_DEFAULTS, QuantizerAttributes, canonical

MXFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
INT4 = {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}
INT8_PER_CHANNEL = {"num_bits": 8, "axis": 0}
INT8_PER_TOKEN = {"num_bits": 8, "type": "dynamic", "block_sizes": {-1: None}}
FP8 = {"num_bits": (4, 3), "axis": None}
FP8_SQUARE_BLOCKS = {"num_bits": (4, 3), "block_sizes": {-1: 128, -2: 128}}


def of(cfg):
    return QuantizerAttributes.of(cfg)


@given(cfg=attributes)
def test_modelopt_gets_back_exactly_what_was_read(cfg):
    before = repr(cfg)
    returned = of(cfg).modelopt()
    assert repr(returned) == before
    returned.clear()
    assert repr(of(cfg).modelopt()) == before


def test_attributes_are_not_changed_through_the_dict_they_were_read_from():
    cfg = copy.deepcopy(INT4)
    read = of(cfg)
    cfg["block_sizes"][-1] = 64
    assert (read.block_size, read.modelopt()) == (128, INT4)


@given(first=attributes, second=attributes)
def test_attributes_are_equal_where_their_canonical_forms_are(first, second):
    are_equal = canonical(first) == canonical(second)
    assert (of(first) == of(second)) is are_equal
    assert len({of(first), of(second)}) == 2 - are_equal


@pytest.mark.parametrize(
    ("written", "is_equal"),
    [
        ({"axis": None}, True),
        ({"type": "static"}, True),
        ({"enable": True}, True),
        ({"effective_bits": 3.0}, True),
        ({"block_sizes": None}, True),
        ({"axis": 0}, False),
        ({"type": "dynamic"}, False),
        ({"enable": False}, False),
        ({"narrow_range": True}, False),
        ({"num_bits": 4}, False),
    ],
)
def test_only_what_changes_bits_makes_attributes_unequal(written, is_equal):
    assert (of({"num_bits": 8} | written) == of({"num_bits": 8})) is is_equal


def test_list_in_a_config_equals_a_tuple():
    listed = {"num_bits": [2, 1], "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": [8, 0]}}
    assert of(listed) == of(MXFP4)
    assert of(listed).is_mx


@pytest.mark.parametrize(
    ("cfg", "is_dynamic", "needs_calibration", "is_mx"),
    [
        (MXFP4, True, False, True),
        (NVFP4, True, True, False),
        (NVFP4 | {"block_sizes": {-1: 16, "scale_bits": (4, 3)}}, False, True, False),
        (INT8_PER_CHANNEL, False, True, False),
        (INT8_PER_TOKEN, True, False, False),
        ({"num_bits": 8, "type": "dynamic"}, True, False, False),
        ({"num_bits": (4, 3), "block_sizes": {-1: 32, "scale_bits": (8, 0)}}, False, True, False),
    ],
)
def test_dynamic_scales_and_calibration(cfg, is_dynamic, needs_calibration, is_mx):
    read = of(cfg)
    assert (read.is_dynamic, read.needs_calibration) == (is_dynamic, needs_calibration)
    assert read.is_mx is is_mx


@pytest.mark.parametrize(
    ("cfg", "of_weight", "of_input"),
    [
        (FP8, "tensor", "tensor"),
        ({"num_bits": 8, "axis": (0,)}, "output channel", "caption"),
        ({"num_bits": 8, "axis": 1}, "input channel", "token position"),
        ({"num_bits": 8, "axis": -1}, "input channel", "input channel"),
        ({"num_bits": 8, "axis": -2}, "output channel", "token position"),
        ({"num_bits": 8, "axis": 2}, "other axes", "input channel"),
        ({"num_bits": 8, "axis": (0, 1)}, "other axes", "other axes"),
        (INT8_PER_TOKEN, "token", "token"),
        ({"num_bits": 8, "type": "dynamic"}, "batch tensor", "batch tensor"),
        (MXFP4, "block", "block"),
        (FP8_SQUARE_BLOCKS, "block", "block"),
    ],
)
def test_which_values_share_a_scale(cfg, of_weight, of_input):
    read = of(cfg)
    assert (read.scale_shared_by("weight"), read.scale_shared_by("input")) == (of_weight, of_input)


@pytest.mark.parametrize(
    ("cfg", "bits_per_weight", "padded_width", "stored_bits"),
    [  # a weight of 48 x 300
        (MXFP4, 4.25, 320, 48 * 300 * 4 + 48 * 10 * 8),
        (NVFP4, 4.5, 304, 48 * 300 * 4 + 48 * 19 * 8 + 32),
        (NVFP4 | {"block_sizes": NVFP4["block_sizes"] | {-1: 64}}, 4.5, 304, 64_928),
        (INT4, 4.125, 384, 48 * 300 * 4 + 48 * 3 * 16),
        ({"num_bits": 4, "block_sizes": {1: 100}}, 4.16, 300, 48 * 300 * 4 + 48 * 3 * 16),
        (FP8_SQUARE_BLOCKS, 8 + 16 / 128**2, 384, 48 * 300 * 8 + 3 * 16),
        (INT8_PER_CHANNEL, 8, 300, 48 * 300 * 8 + 48 * 32),
        (INT8_PER_CHANNEL | {"axis": (1,)}, 8, 300, 48 * 300 * 8 + 300 * 32),
        (INT8_PER_TOKEN, 8, 300, 48 * 300 * 8 + 48 * 32),
        (FP8, 8, 300, 48 * 300 * 8 + 32),
        ([INT4, FP8], 4.125, 384, 48 * 300 * 4 + 48 * 3 * 16 + 32),
    ],
)
def test_nominal_bits_and_those_of_a_stored_weight(cfg, bits_per_weight, padded_width, stored_bits):
    read = of(cfg)
    assert (read.bits_per_weight, read.padded_width(300)) == (bits_per_weight, padded_width)
    assert read.stored_bits(48, 300) == stored_bits


@pytest.mark.parametrize(("width", "padded"), [(256, 256), (320, 384), (100, 128)])
def test_padded_width_is_that_of_modelopt(width, padded):
    import torch
    from pytest_autoquant.modelopt_support.private_api import tensor_quantizer

    quantizer = tensor_quantizer(of(INT4))
    quantizer(torch.ones(2, width))
    padded_shape = getattr(quantizer, "_original_shape", (2, width))
    assert padded_shape[-1] == of(INT4).padded_width(width) == padded


def test_width_of_a_custom_format_is_unknown():
    with pytest.raises(UsageError, match="num_bits 'mine' names a format of a custom backend"):
        _ = of({"num_bits": "mine"}).bits_per_weight


def test_quantizers_in_sequence_keep_their_order():
    read = of([INT4, FP8])
    assert read.is_sequential
    assert (read.num_bits, read.followers) == (4, (of(FP8),))
    assert read not in (of([FP8, INT4]), of(INT4))


def test_attributes_that_are_not_interpreted_are_named():
    read = of({"num_bits": 8, "rotate": True, "bias": {-1: None, "type": "static"}})
    assert [key for key, _ in read.others] == ["bias", "rotate"]


def test_defaults_are_those_of_modelopt():
    from modelopt.torch.quantization.config import QuantizerAttributeConfig

    theirs = QuantizerAttributeConfig().model_dump()
    assert {key: theirs[key] for key in ATTRIBUTE_DEFAULTS} == ATTRIBUTE_DEFAULTS
    assert theirs["num_bits"] == QuantizerAttributes().num_bits


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({"num_bits": (4, 3), "axis": None}, True),
        ({"num_bits": 8, "axis": 0}, False),
        ({"num_bits": (4, 3), "type": "dynamic"}, False),
        ({"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}, 1),
        ({"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}, 0),
        ({"num_bits": (4, 3), "block_sizes": {-1: 128, -2: 128}}, True),
        ({"num_bits": (4, 3), "block_sizes": {-1: 128, -2: 64}}, False),
        ({"num_bits": 4, "block_sizes": {-1: 128}}, False),
    ],
)
def test_one_range_of_a_weight_of_128_by_128(cfg, expected):
    assert QuantizerAttributes.of(cfg).has_one_range(128, 128) == expected


@pytest.mark.parametrize(("group", "expected"), [(96, 4.25), (128, 4.125), (256, 4.125)])
def test_block_that_the_width_cuts_stores_a_whole_scale(group, expected):
    stored = of({"num_bits": 4, "block_sizes": {-1: group}}).stored_bits(64, 128)
    assert stored / (64 * 128) == expected
