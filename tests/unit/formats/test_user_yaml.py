"""The user's pairs and overlays: what valid files define, and what is refused."""

import pytest
import yaml
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import builtin_granularities
from pytest_autoquant.formats.user_yaml import granularity_of, read_granularity, read_pair

PAIR = "name: mine\nweight: int4\nactivation: int8\n"
WEIGHT = "quant_cfg_overrides.*weight_quantizer"
BLOCKS = f"{WEIGHT}.block_sizes"
DTYPES = "fp4, nvfp4, fp8, int8, int4, fp16"


@pytest.fixture
def pair(tmp_path):
    def read(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return read_pair(path).value

    return read


def overlay(overrides):
    """The overlay whose ``quant_cfg_overrides`` are given as YAML text."""
    document = {"name": "mine", "quant_cfg_overrides": yaml.safe_load(overrides)}
    return granularity_of(document, source="mine.yaml")


def weight(override):
    return overlay(f"'*weight_quantizer': {{{override}}}").weight


# --- pairs


def test_pair_without_optional_keys_is_composed_and_experimental(pair):
    mine = pair("name: mine\nweight: fp8\nactivation: int8\n")
    assert (mine.name, mine.weight, mine.activation) == ("mine", "fp8", "int8")
    assert (mine.format_name, mine.from_preset) == ("FP8_WEIGHT_INT8_ACT_CFG", False)
    assert mine.experimental


def test_pair_with_another_format_name_uses_modelopts_preset(pair):
    mine = pair(PAIR + "format_name: INT4_AWQ_CFG\nexperimental: false\n")
    assert (mine.format_name, mine.from_preset) == ("INT4_AWQ_CFG", True)
    assert not mine.experimental


def test_every_problem_of_a_file_is_named(pair, tmp_path):
    with pytest.raises(UsageError) as caught:
        pair("name: Mine\nweight: int3\nactivation: int8\n")
    path = tmp_path / "mine.yaml"
    assert str(caught.value).splitlines() == [
        f"{path}: name must consist of a-z, 0-9 and _ only, got 'Mine'",
        f"{path}: weight must be one of {DTYPES}, got 'int3'",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIR.replace("int4", "int3"), f"weight must be one of {DTYPES}, got 'int3'"),
        (PAIR.replace("int8", "8"), "activation must be one of fp16, fp8, int8, int4, fp4, nvfp4"),
        *(
            (PAIR.replace("mine", name), "name must have at most 120 characters and not be a dev")
            for name in ("con", "prn", "aux", "nul", "com1", "lpt9", "a" * 121)
        ),
        (
            PAIR + "format_name: FP8 CFG\n",
            "format_name must be a name of letters, digits and _, got 'FP8 CFG'",
        ),
        (PAIR + "format_name: null\n", "format_name must be a name of letters, digits and _, got"),
        (
            "name: mine\nwieght: int8\nactivaton: int8\n",
            "unknown key 'wieght', unknown key 'activaton', key 'weight' is missing, key "
            "'activation' is missing; allowed: name, weight, activation, format_name, experimental",
        ),
        (
            PAIR.replace("int4", "fp16").replace("int8", "fp16") + "format_name: ANY_CFG\n",
            "weight and activation must not both be fp16: nothing is quantized",
        ),
    ],
)
def test_invalid_pair_is_refused(pair, tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        pair(text)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: {message}")


# --- overlays


def test_overlay_in_yaml_equals_the_built_in_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("""
        name: recipe_match_channel_token
        quant_cfg_overrides:
          "*weight_quantizer": {axis: 0}
          "*input_quantizer":
            type: dynamic
            block_sizes: {"-1": null}
    """)
    assert read_granularity(path).value == builtin_granularities()["recipe_match_channel_token"]


@pytest.mark.parametrize("nothing", ["", "null", "{}"])
def test_overlay_may_override_nothing(nothing):
    assert overlay(nothing).overrides == {}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("axis: null", {"axis": None}),
        ("axis: [0, 1]", {"axis": (0, 1)}),
        ("axis: 0, type: dynamic", {"axis": 0, "type": "dynamic"}),
        ("block_sizes: {'-1': 64, '-2': 32}", {"block_sizes": {-1: 64, -2: 32}}),
        ("block_sizes: {-1: null}", {"block_sizes": {-1: None}}),
        (
            "block_sizes: {'-1': 16, type: dynamic, scale_bits: [4, 3]}",
            {"block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}},
        ),
        (
            "block_sizes: {-1: 16, scale_bits: 8, scale_block_sizes: {'-1': 256}}",
            {"block_sizes": {-1: 16, "scale_bits": 8, "scale_block_sizes": {-1: 256}}},
        ),
    ],
)
def test_override_becomes_modelopt_attributes(override, expected):
    assert weight(override) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("[]", "quant_cfg_overrides: must be a mapping with the keys *weight_quantizer, *input_"),
        ("'*lm_head*': {axis: 0}", "quant_cfg_overrides: unknown key '*lm_head*'; allowed: *wei"),
        ("'*weight_quantizer': 64", f"{WEIGHT}: must be a mapping with the keys axis, block_sizes"),
        ("'*weight_quantizer': {}", f"{WEIGHT}: must not be empty; give axis, block_sizes, type"),
        (
            "'*weight_quantizer': {num_bits: 4}",
            f"{WEIGHT}: unknown key 'num_bits'; allowed: axis, block_sizes, type; the quant",
        ),
        (
            "'*weight_quantizer': {axis: null, block_sizes: {-1: 64}}",
            f"{WEIGHT}: axis and block_sizes exclude each other; give one",
        ),
    ],
)
def test_invalid_overrides_are_refused(overrides, message):
    with pytest.raises(UsageError) as caught:
        overlay(overrides)
    assert str(caught.value).startswith(f"mine.yaml: {message}")


TYPE_RULE = "type must be one of static, dynamic"
KEY_RULE = "must be an axis (an integer) or one of type, scale_bits, scale_block_sizes"


@pytest.mark.parametrize(
    ("override", "values", "message"),
    [
        (
            "axis: {}",
            ["true", "0.5", "[]", "[0, x]", "{a: 1}"],
            f"{WEIGHT}.axis must be null, an integer or a list of integers",
        ),
        ("type: {}", ["fast", "null", "[static]"], f"{WEIGHT}.{TYPE_RULE}"),
        ("block_sizes: {{-1: 64, type: {}}}", ["fast", "null"], f"{BLOCKS}.{TYPE_RULE}"),
        ("block_sizes: {}", ["64", "null", "[-1, 64]"], f"{BLOCKS}: must be a mapping such as"),
        ("block_sizes: {}", ["{}", "{type: static}"], f"{BLOCKS}: must have an axis"),
        ("block_sizes: {{{}: 64}}", ["last", "true", "1.5"], f"{BLOCKS}: key {{}} {KEY_RULE}"),
        (
            "block_sizes: {{-1: {}}}",
            ["0", "64.0", "'64'", "true", "[64]"],
            f"{BLOCKS}.-1 must be a positive integer or null",
        ),
        ("block_sizes: {{-1: 64, '-1': {}}}", ["32"], f"{BLOCKS}: axis -1 is written twice"),
        (
            "block_sizes: {{-1: 32, scale_bits: {}}}",
            ["0", "true", "null", "e4m3", "[]", "[4]", "[4, 3, 2]", "[0, 0]", "[-1, 3]", "[4, x]"],
            f"{BLOCKS}.scale_bits must be a positive integer or a list [exponent bits, mantissa",
        ),
        (
            "block_sizes: {{-1: 32, scale_block_sizes: {}}}",
            ["{}", "null", "256", "{a: 1}", "{-1: 0}", "{-1: x}", "{-1: null}"],
            f"{BLOCKS}.scale_block_sizes must map axes to positive integers",
        ),
    ],
)
def test_invalid_values_of_an_override_are_refused(override, values, message):
    for value in values:
        with pytest.raises(UsageError) as caught:
            weight(override.format(value))
        key = repr(value) if value == "last" else value
        assert str(caught.value).startswith(f"mine.yaml: {message.replace('{}', key)}"), value
