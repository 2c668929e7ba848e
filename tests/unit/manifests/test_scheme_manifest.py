"""Scheme manifests: they come back as written, and hostile ones are refused in our words."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fuzz import (
    HOSTILE_NAMES,
    JSON_TOKENS,
    LONGEST_MESSAGE,
    Verbatim,
    controls,
    damages,
    encode,
    fuzz,
    json_values,
    places,
    put,
)
from hypothesis import given
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.json_record import SCHEMA_VERSION
from pytest_autoquant.manifests.layout import find_schemes, scheme_folder
from pytest_autoquant.manifests.scheme_manifest import (
    AllocationRecord,
    ExportRecord,
    FrontierPoint,
    GroupDecision,
    MeasuredDamage,
    SchemeManifest,
    SchemeRecord,
    ViolationRecord,
    dump_scheme,
    load_scheme,
)


@pytest.fixture
def scheme(manifest):
    """Two groups of which one is quantized and exported."""
    return SchemeManifest(
        case_id="toy/schemes/mine/small",
        scheme=SchemeRecord(
            name="mine",
            candidates=("wfp8_afp8",),
            left_out={"wint4_afp16": "vllm cannot load wint4_afp16, exported as W4A16_AWQ"},
            measure="effective_bits",
            amount=12.0,
            target="vllm",
        ),
        model=manifest.model,
        dataset=manifest.dataset,
        groups=(
            GroupDecision(
                name="a", modules=("a", "b"), weights=64, format=None, scores={"wfp8_afp8": 2.5}
            ),
            GroupDecision(
                name="c", modules=("c",), weights=64, format="wfp8_afp8", scores={"wfp8_afp8": 0.5}
            ),
        ),
        allocation=AllocationRecord(
            score=0.5, effective_bits=12.0, fraction_of_groups=0.5, fraction_of_weights=0.5
        ),
        frontier=(
            FrontierPoint(budget=8.0, effective_bits=8.0, score=3.0),
            FrontierPoint(budget=16.0, effective_bits=16.0, score=0.0),
        ),
        measured=MeasuredDamage(
            kl=1e-3,
            loss=2.0,
            loss_before=1.5,
            agreement=0.97,
            num_tokens=100,
            captions="größe.txt",
            sha256="e" * 64,
        ),
        export=ExportRecord(
            bytes_before=1024,
            bytes_after=512,
            num_quantized=1,
            largest_error=1e-7,
            num_identical=3,
            violations=(ViolationRecord(rule="scales", tensor="c", text="<b>|\n"),),
            load="not tried",
            load_text="vLLM is not installed here",
        ),
        environment=manifest.environment,
        timing={"score": 1.0, "solve": 0.25},
        memory=manifest.memory,
    )


def document_of(scheme):
    return json.loads(dump_scheme(scheme))


def load_or_refuse(content):
    """Load a scheme manifest; None where it is refused in words that fit on a terminal."""
    try:
        return load_scheme(content, source="x")
    except RecordError as error:
        message = str(error)
    assert message.startswith("x: ")
    assert controls(message) == set()
    assert len(message) < LONGEST_MESSAGE
    return None


def test_a_manifest_comes_back_as_it_was_written(scheme):
    for each in (scheme, replace(scheme, export=None)):
        text = dump_scheme(each)
        assert load_scheme(text, source="x") == load_scheme(text.encode(), source="x") == each
        assert text.endswith("}\n")
        assert json.loads(text, parse_constant=pytest.fail)["schema_version"] == SCHEMA_VERSION


def test_perplexities_are_exponentials_of_the_losses(scheme):
    assert scheme.measured.perplexity == math.exp(2.0)
    assert scheme.measured.perplexity_before == math.exp(1.5)


def test_a_manifest_belongs_into_its_checkpoint(scheme):
    assert scheme.path == Path("toy/schemes/mine/scheme_manifest.json")
    assert scheme_folder("Qwen/Qwen3-VL", "mine") == Path("qwen--qwen3-vl/schemes/mine")


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
def test_a_wrong_field_is_refused_by_its_name(scheme, path, value):
    with pytest.raises(RecordError) as caught:
        load_scheme(json.dumps(put(document_of(scheme), path, value)), source="x.json")
    message = str(caught.value)
    assert message.startswith("x.json: is not a valid scheme manifest: ")
    assert ".".join(map(str, path)) in message


def test_every_missing_field_is_refused_by_its_name(scheme):
    document = document_of(scheme)
    for path in places(document):
        if isinstance(path[-1], int) or path[0] in ("schema_version", "timing"):
            continue
        if "left_out" in path[:-1] or "scores" in path[:-1] or path[:1] == ("dataset",):
            continue
        changed = copy.deepcopy(document)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        with pytest.raises(RecordError) as caught:
            load_scheme(json.dumps(changed), source="x")
        assert str(path[-1]) in str(caught.value)


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
def test_a_number_that_is_none_is_refused(scheme, path, token):
    assert load_or_refuse(encode(put(document_of(scheme), path, Verbatim(token)))) is None


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 999])
def test_a_newer_version_is_refused_as_such_whatever_else_is_in_it(scheme, version):
    newer = f"x: written by a newer version: schema {version}, this one reads up to "
    for document in ({"schema_version": version}, document_of(scheme)):
        with pytest.raises(RecordError) as caught:
            load_scheme(json.dumps(document | {"schema_version": version}), source="x")
        assert str(caught.value).startswith(newer)


@pytest.mark.parametrize("version", [99.0, "99", True, 0, -1, None])
def test_a_version_that_is_none_is_refused_as_in_other_manifests(scheme, version):
    document = document_of(scheme) | {"schema_version": version}
    if version is None:
        del document["schema_version"]
    assert load_or_refuse(json.dumps(document)) is None


def test_a_loss_without_a_perplexity_is_no_traceback(scheme):
    loaded = load_or_refuse(encode(put(document_of(scheme), ("measured", "loss"), 1e4)))
    assert loaded is None or loaded.measured.perplexity == math.inf


@fuzz
@given(data=st.data())
def test_a_damaged_manifest_is_refused_in_our_words_or_loads_and_can_be_written_again(scheme, data):
    loaded = load_or_refuse(data.draw(damages(document_of(scheme))))
    if loaded is not None:
        again = load_scheme(dump_scheme(loaded), source="x")
        assert again == loaded


@pytest.mark.parametrize("token", JSON_TOKENS, ids=lambda token: f"{token[:12]!a}x{len(token)}")
def test_no_token_in_any_place_is_a_traceback(scheme, token):
    document = document_of(scheme)
    for path in places(document):
        loaded = load_or_refuse(encode(put(copy.deepcopy(document), path, Verbatim(token))))
        if loaded is not None:
            dump_scheme(loaded)
    load_or_refuse(token)


@fuzz
@given(content=st.binary(max_size=200) | st.text(max_size=200) | json_values.map(json.dumps))
def test_a_file_of_anything_is_refused_in_our_words(content):
    assert load_or_refuse(content) is None


@pytest.mark.parametrize("key", ["\x1b[2J\x9b", "a\nFAILED b", "k" * 100_000])
def test_a_refusal_repeats_no_control_character_and_no_novel(scheme, key):
    for path in ((), ("scheme",), ("groups", 0), ("measured",)):
        assert load_or_refuse(json.dumps(put(document_of(scheme), (*path, key), None))) is None


# Paths


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name[:12]))
def test_hostile_names_stay_below_the_root(scheme, tmp_path, name):
    for model, mine in ((name, "mine"), ("toy", name), (name, name)):
        document = put(document_of(scheme), ("model", "name"), model)
        loaded = load_scheme(json.dumps(put(document, ("scheme", "name"), mine)), source="x")
        parts = loaded.path.parts
        assert (len(parts), parts[1], parts[3]) == (4, "schemes", "scheme_manifest.json")
        assert not {"..", ".", "", "/"} & set(parts)
        path = tmp_path / loaded.path
        assert path.resolve().is_relative_to(tmp_path.resolve())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        assert path in find_schemes(tmp_path)


def place(root, name):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def test_manifests_are_found_in_path_order_and_only_in_their_places(tmp_path):
    right = [
        place(tmp_path, f"{name}/scheme_manifest.json")
        for name in ("toy/schemes/b", "toy/schemes/a", "big/schemes/c")
    ]
    for name in ("schemes/a", "toy/a", "toy/schemes", "x/toy/schemes/a"):
        place(tmp_path, f"{name}/scheme_manifest.json")
    place(tmp_path, "toy/schemes/a/other.json")
    assert find_schemes(tmp_path) == sorted(right)
    assert find_schemes(tmp_path / "nowhere") == []


def test_a_folder_that_never_became_an_export_holds_no_scheme(tmp_path):
    place(tmp_path, "toy/schemes/.mine.abc123/scheme_manifest.json")
    assert find_schemes(tmp_path) == []
