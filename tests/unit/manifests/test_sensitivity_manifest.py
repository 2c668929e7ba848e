"""The sensitivity manifest: read back as written, refused with the field that is wrong."""

import copy
import json

import pytest
from builders import changed
from fuzz import (
    HOSTILE_NAMES,
    JSON_TOKENS,
    Verbatim,
    at,
    check_message,
    damages,
    encode,
    fuzz,
    hostile_texts,
    json_values,
    places,
    put,
    strict,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.json_record import SCHEMA_VERSION
from pytest_autoquant.manifests.sensitivity_manifest import (
    dump_manifest,
    load_manifest,
    read_manifest,
)

LAYER = "model.language_model.layers.0"
MLP = f"{LAYER}.mlp.gate_proj.quant_recipe"
UP = f"{LAYER}.mlp.up_proj"
INVALID = "x: is not a valid manifest: "
NO_VERSION = "is not a manifest: it has no schema_version"

#: String fields that may hold any text.
TEXTS = (
    ("case", "case_id"),
    ("case", "pair"),
    ("case", "granularity"),
    ("case", "size"),
    ("case", "problems", 0),
    ("model", "id"),
    ("model", "name"),
    ("dataset", "name"),
    ("quantization", "base_format_name"),
    ("quantization", "effective_quantizer_summary", "weight_quantizer"),
    ("environment", "device_name"),
    ("environment", "host"),
    ("run_config", "engine_reason"),
)
#: Fields of any JSON type.
ANY_TYPE = (
    ("quantization", "algorithm"),
    ("quantization", "quant_granularity", "quant_cfg_overrides", "a"),
    ("quantization", "effective_quant_cfg", 0, "a"),
)
NUMBERS = (
    ("autoquant_state", "total_score"),
    ("autoquant_state", "score"),
    ("autoquant_state", "effective_bits"),
    ("autoquant_state", "minimum_effective_bits"),
    ("autoquant_state", "constraints", "effective_bits"),
    ("quantization", "effective_bits"),
    ("layer_sensitivity", MLP, "importance"),
    ("layer_sensitivity", MLP, "costs", 0),
    ("sensitivity_ranking", 0, "importance"),
    ("timing", "total"),
    ("scheme", "auto_quantize_bits"),
    ("run_config", "effective_bits"),
)


@pytest.fixture
def document(manifest):
    """A manifest as parsed JSON, with a problem so that every text field has a value."""
    failed = changed(manifest, "case", status="failed", problems=("out of memory",))
    return json.loads(dump_manifest(failed))


def short(text):
    return ascii(text[:12])


def dotted(path):
    return ".".join(str(key).rpartition(".")[2] for key in path)


def refusal(content, source="x"):
    """Return why a manifest is refused, checked to fit on a terminal."""
    with pytest.raises(RecordError) as caught:
        load_manifest(content, source=source)
    return check_message(caught.value)


def load_or_refuse(content):
    """Check that a manifest loads and can be written and read again, or is refused."""
    try:
        loaded = load_manifest(content, source="x")
    except RecordError as error:
        check_message(error)
    else:
        written = dump_manifest(loaded)
        assert dump_manifest(load_manifest(written, source="x")) == written


# Written and read


def test_manifest_reads_back_as_written(manifest):
    text = dump_manifest(manifest)
    assert text.endswith("}\n")
    assert load_manifest(text, source="x") == manifest
    assert load_manifest(text.encode(), source="x") == manifest
    assert dump_manifest(load_manifest(text, source="x")) == text


def test_keys_are_stable(manifest):
    document = strict(dump_manifest(manifest))
    assert list(document) == [
        "schema_version",
        "case",
        "scheme",
        "model",
        "dataset",
        "quantization",
        "num_quantized_layers",
        "layers",
        "layer_sensitivity",
        "sensitivity_ranking",
        "autoquant_state",
        "environment",
        "timing",
        "memory",
        "run_config",
    ]
    assert list(document["quantization"]) == [
        "base_format_name",
        "base_is_modelopt_preset",
        "quant_granularity",
        "effective_quant_cfg",
        "effective_quantizer_summary",
        "algorithm",
        "effective_bits",
        "digest",
    ]
    assert list(document["quantization"]["quant_granularity"]) == ["name", "quant_cfg_overrides"]
    assert {"constraints", "score", "is_satisfied"} <= set(document["autoquant_state"])
    assert document["schema_version"] == SCHEMA_VERSION


def test_non_finite_number_is_written_as_null(manifest):
    text = dump_manifest(
        changed(manifest, "autoquant_state", score=float("nan"), total_score=float("inf"))
    )
    assert strict(text)["autoquant_state"]["score"] is None
    assert load_manifest(text, source="x").autoquant_state.total_score is None


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(RecordError) as caught:
            read_manifest(path)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")


# Refused


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is not JSON: "),
        ('{"schema_version": 1', "is not JSON: "),
        (b"\xff\xfe\x00", "is not JSON: "),
        pytest.param("[" * 100_000, "is not JSON: it nests too deep", id="deep"),
        ("null", NO_VERSION),
        ("[1]", NO_VERSION),
        ("{}", NO_VERSION),
        ('{"schema_version": "1"}', NO_VERSION),
        ('{"schema_version": 1.0}', NO_VERSION),
        ('{"schema_version": true}', NO_VERSION),
        ('{"schema_version": -1}', NO_VERSION),
        ('{"schema_version": 1}', "is not a valid manifest: case: Field required"),
        (
            '{"schema_version": 99}',
            "was written by a newer version: schema 99, this version reads up to 1; upgrade "
            "pytest-autoquant",
        ),
    ],
)
def test_other_content_is_refused(content, problem):
    assert refusal(content).startswith(f"x: {problem}")


@pytest.mark.parametrize(
    "path",
    [
        ("model", "digest"),
        ("memory",),
        ("autoquant_state", "minimum_effective_bits"),
        ("layers", UP, "group"),
        ("sensitivity_ranking", 1, "name"),
    ],
    ids=dotted,
)
def test_missing_field_is_named(document, path):
    del at(document, path[:-1])[path[-1]]
    where = ".".join(map(str, path))
    assert refusal(json.dumps(document)).startswith(f"{INVALID}{where}: Field required")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("case", "method"), "magic"),
        (("case", "status"), "fine"),
        (("case", "experimental"), "perhaps"),
        (("num_quantized_layers",), 1.5),
        (("dataset", "token_lengths"), {"long": 3}),
        (("run_config", "colour"), "blue"),
        (("layer_sensitivity",), []),
    ],
    ids=lambda value: dotted(value) if isinstance(value, tuple) else "",
)
def test_malformed_or_unknown_field_is_named(document, path, value):
    message = refusal(json.dumps(put(document, path, value)))
    assert message.startswith(f"{INVALID}{'.'.join(path)}")


@pytest.mark.parametrize("name", ["gone", "\x1b[2J\nx", "k" * 100_000], ids=short)
@pytest.mark.parametrize(
    ("path", "kind", "owner"),
    [
        (("sensitivity_ranking", 0, "name"), "group", "layer_sensitivity"),
        (("layer_sensitivity", MLP, "module_names", 0), "layer", "layers"),
    ],
    ids=["group", "layer"],
)
def test_name_without_a_record_is_refused(document, path, kind, owner, name):
    message = refusal(json.dumps(put(document, path, name)))
    assert message.startswith(f"{INVALID}{path[0]} names {kind} ")
    if name == "gone":
        assert message.endswith(f" 'gone', which {owner} does not have")


@pytest.mark.parametrize("path", NUMBERS, ids=dotted)
@pytest.mark.parametrize("token", ["1e999", "-1e999", '"nan"', '"inf"'])
def test_number_that_is_not_finite_is_refused(document, path, token):
    message = refusal(encode(put(document, path, Verbatim(token))))
    assert message.startswith(f"{INVALID}{'.'.join(map(str, path))}: ")


@pytest.mark.parametrize("digits", [20, 400, 4000, 5000])
@pytest.mark.parametrize("fields", [["out_features"], ["in_features", "out_features"]])
def test_layer_of_impossible_size_is_refused(document, fields, digits):
    for name in fields:
        document["layers"][UP][name] = Verbatim("9" * digits)
    message = refusal(encode(document))
    problem = f"{INVALID}layer '{UP}': out_features x in_features must be below 2**63"
    assert message.startswith("x: is not JSON: " if digits > 4300 else problem)


@pytest.mark.parametrize("depth", [300, 400])
@pytest.mark.parametrize("path", ANY_TYPE, ids=dotted)
def test_config_too_deep_to_be_written_again_is_refused(document, path, depth):
    message = refusal(encode(put(document, path, Verbatim("[" * depth + "]" * depth))))
    assert message.startswith(INVALID)


@pytest.mark.parametrize("path", [(), ("case",), ("layers",), ("layers", UP)], ids=dotted)
@pytest.mark.parametrize("key", ["\x1b[2J\x9b", "a\nFAILED b", "k" * 100_000], ids=short)
def test_unknown_key_is_repeated_on_one_short_line(document, path, key):
    at(document, path)[key] = None
    assert refusal(json.dumps(document)).startswith(INVALID)


@settings(fuzz, max_examples=100)
@given(content=st.binary(max_size=200) | st.text(max_size=200) | json_values.map(json.dumps))
@example(content=b"\xef\xbb\xbf{}")
@example(content="\ufeff{}")
@example(content='{"schema_version": 1e999}')
@example(content='{"schema_version": ' + "9" * 4000 + "}")
@example(content='{"a":' * 100_000)
@example(content="\ud800")
@example(content='"\ud800"')
def test_any_other_content_is_refused(content):
    refusal(content)


# Loaded


@pytest.mark.parametrize("path", NUMBERS, ids=dotted)
@pytest.mark.parametrize("token", ["1e-320", "1e308", "-1e308"])
def test_extreme_finite_number_loads(document, path, token):
    loaded = load_manifest(encode(put(document, path, Verbatim(token))), source="x")
    assert at(json.loads(dump_manifest(loaded)), path) == float(token)


@pytest.mark.parametrize("path", ANY_TYPE, ids=dotted)
def test_nested_config_loads(document, path):
    nested = Verbatim("[" * 250 + "]" * 250)
    loaded = load_manifest(encode(put(document, path, nested)), source="x")
    assert json.dumps(at(json.loads(dump_manifest(loaded)), path)) == nested


@settings(fuzz, max_examples=100)
@given(data=st.data())
def test_any_text_loads_unchanged(document, data):
    path = data.draw(st.sampled_from(TEXTS))
    text = data.draw(hostile_texts | st.sampled_from(HOSTILE_NAMES))
    changed_document = put(copy.deepcopy(document), path, text)
    loaded = load_manifest(json.dumps(changed_document), source="x")
    assert at(json.loads(dump_manifest(loaded)), path) == text


# Loaded or refused, never a traceback


@settings(fuzz, max_examples=100)
@given(data=st.data())
def test_damaged_manifest_loads_or_is_refused(document, data):
    load_or_refuse(data.draw(damages(document)))


@settings(fuzz, max_examples=40)
@given(data=st.data())
def test_manifest_with_damaged_bytes_loads_or_is_refused(manifest, data):
    content = bytearray(dump_manifest(manifest).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    load_or_refuse(bytes(content))


@pytest.mark.parametrize("token", JSON_TOKENS, ids=lambda token: f"{token[:12]!a}x{len(token)}")
def test_token_in_any_place_loads_or_is_refused(document, token):
    one_of_each = {
        tuple("#" if isinstance(k, int) or "." in k else k for k in p): p for p in places(document)
    }
    for path in one_of_each.values():
        load_or_refuse(encode(put(copy.deepcopy(document), path, Verbatim(token))))
    refusal(token)
