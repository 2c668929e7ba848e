"""Every kind of record: read back as written, refused with the field that is wrong."""

import copy
import json
from functools import partial
from typing import NamedTuple

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
    strict,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.records.json_record import SCHEMA_VERSION, load_record
from pytest_autoquant.manifests.records.scheme_manifest import dump_scheme, load_scheme
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.manifests.records.session_summary import SessionSummary, dump_summary

UP = "model.language_model.layers.0.mlp.up_proj"


class Kind(NamedTuple):
    """How a kind of record is written, read and called in messages."""

    dump: object
    load: object
    name: str


KINDS = {
    "manifest": Kind(dump_manifest, load_manifest, "manifest"),
    "scheme": Kind(dump_scheme, load_scheme, "scheme manifest"),
    "summary": Kind(
        dump_summary,
        partial(load_record, SessionSummary, name="session summary"),
        "session summary",
    ),
}

#: A field of each record, and a value that it must not have.
MALFORMED = {
    "manifest": [
        ("case.method", "magic"),
        ("case.status", "fine"),
        ("case.experimental", "perhaps"),
        ("num_quantized_layers", 1.5),
        ("dataset.token_lengths", {"long": 3}),
        ("run_config.colour", "blue"),
        ("layer_sensitivity", []),
    ],
    "scheme": [
        ("case_id", 1),
        ("scheme", None),
        ("scheme.measure", "bits"),
        ("scheme.candidates", "wfp8_afp8"),
        ("groups.0.scores.wfp8_afp8", None),
        ("groups.1.format", 8),
        ("export.load", "maybe"),
        ("export.violations.0.text", None),
        ("frontier", {}),
        ("extra", 1),
    ],
    "summary": [
        ("skipped", 3),
        ("skipped.0", "a"),
        ("skipped.0.status", None),
        ("skipped.0.more", "m"),
        ("skipped.0.effective_bits", 10**400),
        ("errors.0.problem", 3),
        ("gated", ["a"]),
        ("lost", None),
        ("shard", [1, 2]),
        ("unknown", 1),
    ],
}
REQUIRED = {
    "manifest": [
        "model.digest",
        "memory",
        "autoquant_state.minimum_effective_bits",
        "sensitivity_ranking.1.name",
    ],
    "scheme": ["scheme.target", "groups.0.scores", "export", "export.violations.0.rule", "timing"],
    "summary": ["cases.0.pair", "skipped.0.status", "structure.0.granularity", "errors"],
}
NUMBERS = {
    "manifest": ["autoquant_state.total_score", "layers.UP.out_features", "timing.total"],
    "scheme": ["groups.0.scores.wfp8_afp8", "frontier.0.budget", "export.largest_error"],
    "summary": ["cases.0.total_score", "most_sensitive_groups.0.mean_share"],
}


def table(fields):
    """Flatten a table by kind into pytest's arguments."""
    return [
        (kind, *(entry if isinstance(entry, tuple) else (entry,)))
        for kind, entries in fields.items()
        for entry in entries
    ]


def path_of(dotted):
    parts = [UP if part == "UP" else part for part in dotted.split(".")]
    return tuple(int(part) if part.isdigit() else part for part in parts)


@pytest.fixture
def record(request, kind):
    return request.getfixturevalue(kind)


@pytest.fixture
def document(kind, record):
    return json.loads(KINDS[kind].dump(record))


def refusal(kind, content):
    """Return why a record is refused, checked to fit on a terminal."""
    with pytest.raises(RecordError) as caught:
        KINDS[kind].load(content, source="x")
    return check_message(caught.value)


def invalid(kind, field):
    return f"x: is not a valid {KINDS[kind].name}: {field}"


def load_or_refuse(kind, content):
    """Check that a record loads and can be written and read again, or is refused."""
    try:
        loaded = KINDS[kind].load(content, source="x")
    except RecordError as error:
        check_message(error)
    else:
        written = KINDS[kind].dump(loaded)
        assert KINDS[kind].dump(KINDS[kind].load(written, source="x")) == written


@pytest.mark.parametrize("kind", KINDS)
def test_record_reads_back_as_written(kind, record):
    text = KINDS[kind].dump(record)
    assert text.endswith("}\n")
    assert strict(text)["schema_version"] == SCHEMA_VERSION
    assert KINDS[kind].load(text, source="x") == record
    assert KINDS[kind].load(text.encode(), source="x") == record


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is not JSON: "),
        ('{"schema_version": 1', "is not JSON: "),
        (b"\xff\xfe\x00", "is not JSON: "),
        ('{"schema_version": NaN}', "is not JSON: NaN is not a JSON number"),
        pytest.param("[" * 100_000, "is not JSON: it nests too deep", id="deep"),
        *(
            (text, "is not a {}: it has no schema_version")
            for text in (
                "null",
                "[1]",
                "{}",
                '{"schema_version": "1"}',
                '{"schema_version": 1.0}',
                '{"schema_version": true}',
                '{"schema_version": 0}',
            )
        ),
        ('{"schema_version": 1}', "is not a valid {}: "),
        (
            '{"schema_version": 99, "new": "shape"}',
            "was written by a newer version: schema 99, this version reads up to 1; upgrade "
            "pytest-autoquant",
        ),
    ],
)
def test_other_content_is_refused(kind, content, problem):
    assert refusal(kind, content).startswith(f"x: {problem.format(KINDS[kind].name)}")


@pytest.mark.parametrize(("kind", "path", "value"), table(MALFORMED), ids=ascii)
def test_malformed_or_unknown_field_is_named(kind, document, path, value):
    message = refusal(kind, json.dumps(put(document, path_of(path), value)))
    assert message.startswith(invalid(kind, path))


@pytest.mark.parametrize(("kind", "path"), table(REQUIRED))
def test_missing_field_is_named(kind, document, path):
    *parents, name = path_of(path)
    del at(document, parents)[name]
    message = refusal(kind, json.dumps(document))
    assert message.startswith(invalid(kind, f"{path}: Field required"))


@pytest.mark.parametrize(("kind", "path"), table(NUMBERS))
@pytest.mark.parametrize("token", ["1e999", "-1e999", "1" + "0" * 400, '"nan"'], ids=len)
def test_number_that_is_not_finite_is_refused(kind, document, path, token):
    refusal(kind, encode(put(document, path_of(path), Verbatim(token))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["\x1b[2J\x9b", "a\nFAILED b", "k" * 100_000], ids=len)
def test_unknown_key_is_repeated_on_one_short_line(kind, document, key):
    assert refusal(kind, json.dumps(document | {key: None})).startswith(invalid(kind, ""))


@pytest.mark.parametrize("kind", KINDS)
@settings(fuzz, max_examples=40)
@given(data=st.data())
def test_damaged_record_loads_or_is_refused(kind, document, data):
    load_or_refuse(kind, data.draw(damages(document)))


@settings(fuzz, max_examples=40)
@given(content=st.binary(max_size=200) | st.text(max_size=200))
@example(content=b"\xef\xbb\xbf{}")
@example(content="\ufeff{}")
@example(content='{"schema_version": 1e999}')
@example(content='{"schema_version": ' + "9" * 4000 + "}")
@example(content='{"a":' * 100_000)
@example(content="\ud800")
@example(content='"\ud800"')
def test_any_other_content_is_refused(content):
    refusal("manifest", content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", JSON_TOKENS, ids=lambda token: f"{token[:12]!a}x{len(token)}")
def test_token_in_any_place_loads_or_is_refused(kind, document, token):
    one_of_each = {
        tuple("#" if isinstance(k, int) or "." in k else k for k in p): p for p in places(document)
    }
    for path in one_of_each.values():
        load_or_refuse(kind, encode(put(copy.deepcopy(document), path, Verbatim(token))))
    refusal(kind, token)
