"""The scheme manifest: read back as written, refused with the field that is wrong."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fuzz import (
    JSON_TOKENS,
    Verbatim,
    at,
    check_message,
    damages,
    encode,
    fuzz,
    places,
    put,
)
from hypothesis import given
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.json_record import SCHEMA_VERSION
from pytest_autoquant.manifests.scheme_manifest import (
    ExportRecord,
    GroupDecision,
    ViolationRecord,
    dump_scheme,
    load_scheme,
)


@pytest.fixture
def scheme(derived):
    """Two groups of which one is quantized and exported."""
    skipped = GroupDecision(
        name="b", modules=("b", "c"), weights=64, format=None, scores={"wfp8_afp8": 2.5}
    )
    export = ExportRecord(
        bytes_before=1024,
        bytes_after=512,
        num_quantized=1,
        largest_error=1e-7,
        num_identical=3,
        violations=(ViolationRecord(rule="scales", tensor="c", text="<b>|\n"),),
        load="not tried",
        load_text="vLLM is not installed here",
    )
    left_out = {"wint4_afp16": "vllm cannot load wint4_afp16, exported as W4A16_AWQ"}
    return replace(
        derived,
        scheme=replace(derived.scheme, left_out=left_out, target="vllm"),
        groups=(*derived.groups, skipped),
        export=export,
    )


def document_of(scheme):
    return json.loads(dump_scheme(scheme))


def short(text):
    return ascii(text[:12])


def refusal(content):
    """Return why a scheme manifest is refused, checked to fit on a terminal."""
    with pytest.raises(RecordError) as caught:
        load_scheme(content, source="x")
    return check_message(caught.value)


def load_or_refuse(content):
    """Check that a scheme manifest loads and can be written and read again, or is refused."""
    try:
        loaded = load_scheme(content, source="x")
    except RecordError as error:
        check_message(error)
    else:
        assert load_scheme(dump_scheme(loaded), source="x") == loaded


def test_manifest_reads_back_as_written(scheme):
    for each in (scheme, replace(scheme, export=None)):
        text = dump_scheme(each)
        assert load_scheme(text, source="x") == load_scheme(text.encode(), source="x") == each
        assert text.endswith("}\n")
        assert json.loads(text, parse_constant=pytest.fail)["schema_version"] == SCHEMA_VERSION


def test_perplexity_is_the_exponential_of_the_loss(scheme):
    assert scheme.measured.perplexity == math.exp(2.0)
    assert scheme.measured.perplexity_before == math.exp(1.5)


def test_manifest_lies_in_the_folder_of_its_checkpoint(scheme):
    assert scheme.path == Path("toy/schemes/mine/scheme_manifest.json")


# Refused


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("case_id",), 1),
        (("scheme",), None),
        (("scheme", "measure"), "bits"),
        (("scheme", "amount"), "many"),
        (("scheme", "candidates"), "wfp8_afp8"),
        (("scheme", "left_out"), ["x"]),
        (("groups", 0, "weights"), 1.5),
        (("groups", 0, "scores"), {"wfp8_afp8": None}),
        (("groups", 1, "format"), 8),
        (("measured", "kl"), None),
        (("export", "load"), "maybe"),
        (("export", "violations"), [{"rule": "x"}]),
        (("frontier",), {}),
        (("timing",), [1.0]),
        (("model", "extra"), 1),
        (("extra",), 1),
    ],
    ids=lambda given: ".".join(map(str, given)) if isinstance(given, tuple) else "",
)
def test_malformed_or_unknown_field_is_named(scheme, path, value):
    with pytest.raises(RecordError) as caught:
        load_scheme(json.dumps(put(document_of(scheme), path, value)), source="x.json")
    message = str(caught.value)
    assert message.startswith("x.json: is not a valid scheme manifest: ")
    assert ".".join(map(str, path)) in message


@pytest.mark.parametrize(
    "path",
    [
        ("case_id",),
        ("scheme",),
        ("scheme", "target"),
        ("groups", 0, "scores"),
        ("allocation", "effective_bits"),
        ("frontier", 0, "budget"),
        ("measured", "sha256"),
        ("export",),
        ("export", "load"),
        ("export", "violations", 0, "rule"),
        ("environment", "torch"),
        ("timing",),
        ("memory", "peak_cuda_bytes"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_missing_field_is_named(scheme, path):
    document = document_of(scheme)
    del at(document, path[:-1])[path[-1]]
    where = ".".join(map(str, path))
    expected = f"x: is not a valid scheme manifest: {where}: Field required"
    assert refusal(json.dumps(document)).startswith(expected)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize(
    "path",
    [
        ("scheme", "amount"),
        ("groups", 0, "scores", "wfp8_afp8"),
        ("allocation", "score"),
        ("frontier", 0, "budget"),
        ("measured", "loss"),
        ("export", "largest_error"),
        ("timing", "score"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_number_that_is_not_finite_is_refused(scheme, path, token):
    refusal(encode(put(document_of(scheme), path, Verbatim(token))))


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 999])
@pytest.mark.parametrize("is_empty", [True, False])
def test_newer_version_is_refused_whatever_else_it_has(scheme, version, is_empty):
    document = {} if is_empty else document_of(scheme)
    message = refusal(json.dumps(document | {"schema_version": version}))
    assert message.startswith(f"x: was written by a newer version: schema {version}, this version")


@pytest.mark.parametrize("version", [99.0, "99", True, 0, -1, None])
def test_version_that_is_not_a_positive_integer_is_refused(scheme, version):
    message = refusal(json.dumps(document_of(scheme) | {"schema_version": version}))
    assert message == "x: is not a scheme manifest: it has no schema_version"


def test_loss_too_large_for_a_perplexity_gives_infinity(scheme):
    measured = replace(scheme.measured, loss=1e4)
    assert (measured.perplexity, measured.perplexity_before) == (math.inf, math.exp(1.5))


@fuzz
@given(data=st.data())
def test_damaged_manifest_loads_or_is_refused(scheme, data):
    load_or_refuse(data.draw(damages(document_of(scheme))))


@pytest.mark.parametrize("token", JSON_TOKENS, ids=lambda token: f"{token[:12]!a}x{len(token)}")
def test_token_in_any_place_loads_or_is_refused(scheme, token):
    document = document_of(scheme)
    for path in places(document):
        load_or_refuse(encode(put(copy.deepcopy(document), path, Verbatim(token))))
    refusal(token)


@pytest.mark.parametrize("path", [(), ("scheme",), ("groups", 0), ("measured",)], ids=str)
@pytest.mark.parametrize("key", ["\x1b[2J\x9b", "a\nFAILED b", "k" * 100_000], ids=short)
def test_unknown_key_is_repeated_on_one_short_line(scheme, path, key):
    message = refusal(json.dumps(put(document_of(scheme), (*path, key), None)))
    assert message.startswith("x: is not a valid scheme manifest: ")
