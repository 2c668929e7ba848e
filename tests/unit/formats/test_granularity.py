"""Granularities: the built-in overlays and the normalisation of overrides as YAML gives them."""

import pytest
import yaml
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import builtin_granularities, parse_overrides

PER_TOKEN = {"type": "dynamic", "block_sizes": {-1: None}}
OVERRIDES = {
    "default": {},
    "recipe_match_channel_token": {"*weight_quantizer": {"axis": 0}, "*input_quantizer": PER_TOKEN},
    "w_per_tensor": {"*weight_quantizer": {"axis": None}},
    "w_per_out_channel": {"*weight_quantizer": {"axis": 0}},
    "w_per_in_channel": {"*weight_quantizer": {"axis": 1}},
    "w_group64": {"*weight_quantizer": {"block_sizes": {-1: 64}}},
    "w_group128": {"*weight_quantizer": {"block_sizes": {-1: 128}}},
    "a_per_token_dynamic": {"*input_quantizer": PER_TOKEN},
    "a_per_tensor_static": {"*input_quantizer": {"type": "static", "axis": None}},
    "a_per_hidden_channel": {"*input_quantizer": {"axis": -1}},
}


def parse(text):
    return parse_overrides(yaml.safe_load(text), where="conf/x.yaml")


def weight(text):
    return parse(f"'*weight_quantizer': {{{text}}}")["*weight_quantizer"]


def refusal(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith("conf/x.yaml: ")
    return str(caught.value)


def test_the_built_in_overlays_override_what_their_names_say():
    overlays = builtin_granularities()
    assert list(overlays) == list(OVERRIDES)
    assert {name: overlay.overrides for name, overlay in overlays.items()} == OVERRIDES
    assert [overlay.name for overlay in overlays.values()] == list(OVERRIDES)


def test_an_overlay_written_as_yaml_is_the_built_in_one():
    parsed = parse("""
        "*weight_quantizer": {axis: 0}
        "*input_quantizer":
          type: dynamic
          block_sizes: {"-1": null}
    """)
    assert parsed == OVERRIDES["recipe_match_channel_token"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("axis: null", {"axis": None}),
        ("axis: -1", {"axis": -1}),
        ("axis: [0, 1]", {"axis": (0, 1)}),
        ("type: static", {"type": "static"}),
        ("axis: 0, type: dynamic", {"axis": 0, "type": "dynamic"}),
        ("block_sizes: {-1: 64}", {"block_sizes": {-1: 64}}),
        ("block_sizes: {'-1': 64, '-2': 32}", {"block_sizes": {-1: 64, -2: 32}}),
        ("block_sizes: {-1: null}", {"block_sizes": {-1: None}}),
        (
            "block_sizes: {'-1': 16, type: dynamic, scale_bits: [4, 3]}",
            {"block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}},
        ),
        (
            "block_sizes: {-1: 16, scale_block_sizes: {-1: 256}}",
            {"block_sizes": {-1: 16, "scale_block_sizes": {-1: 256}}},
        ),
    ],
)
def test_values_are_normalised_to_what_modelopt_takes(text, expected):
    assert weight(text) == expected


@pytest.mark.parametrize("text", ["", "null", "{}"])
def test_nothing_to_override_is_the_default_overlay(text):
    assert parse(text) == {}


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("[]", ("quant_cfg_overrides", "mapping", "list")),
        ("'*output_quantizer': {axis: 0}", ("'*output_quantizer'", "*weight_quantizer")),
        ("'*lm_head*': {axis: 0}", ("'*lm_head*'", "*input_quantizer")),
        ("'*weight_quantizer': 64", ("*weight_quantizer", "mapping", "int")),
        ("'*weight_quantizer': {}", ("*weight_quantizer", "empty")),
        ("'*weight_quantizer': {num_bits: 4}", ("'num_bits'", "belongs to the pair")),
        ("'*input_quantizer': {enable: true}", ("*input_quantizer", "'enable'", "axis")),
        ("'*input_quantizer': {enabled: 1}", ("*input_quantizer", "'enabled'")),
    ],
)
def test_what_an_overlay_does_not_own_is_refused_by_name(text, fragments):
    message = refusal(text)
    assert all(fragment in message for fragment in fragments), message


def test_axis_and_block_sizes_in_one_override_are_refused():
    message = refusal("'*weight_quantizer': {axis: null, block_sizes: {-1: 64}}")
    assert "*weight_quantizer: axis and block_sizes exclude each other" in message


@pytest.mark.parametrize("axis", ["true", "zero", "0.5", "[]", "[0, x]", "{a: 1}"])
def test_an_axis_is_null_or_integers(axis):
    assert "axis must be null, an integer" in refusal(f"'*weight_quantizer': {{axis: {axis}}}")


@pytest.mark.parametrize("value", ["fast", "null", "1", "[static]"])
def test_a_scaling_type_is_static_or_dynamic(value):
    for half in (f"type: {value}", f"block_sizes: {{-1: 64, type: {value}}}"):
        assert "must be static or dynamic" in refusal(f"'*input_quantizer': {{{half}}}")


@pytest.mark.parametrize("size", ["0", "-1", "64.0", "'64'", "true", "[64]"])
def test_a_block_size_is_a_positive_integer_or_null(size):
    message = refusal(f"'*weight_quantizer': {{block_sizes: {{-1: {size}}}}}")
    assert "positive integer or null" in message
    assert "axis -1" in message


@pytest.mark.parametrize("key", ["last", "null", "group", "true", "1.5", ".inf"])
def test_a_block_key_is_an_axis_or_one_of_modelopts_words(key):
    message = refusal(f"'*weight_quantizer': {{block_sizes: {{{key}: 64}}}}")
    assert repr(yaml.safe_load(key)) in message
    assert "type, scale_bits, scale_block_sizes" in message


@pytest.mark.parametrize("value", ["64", "null", "[-1, 64]"])
def test_block_sizes_are_a_mapping(value):
    message = refusal(f"'*weight_quantizer': {{block_sizes: {value}}}")
    assert "block_sizes must be a mapping" in message
