"""The manifest file: what is written can be read, what cannot be read is said."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import RecordError
from pytest_autoquant.grid.case import METHODS, cases
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.sensitivity_manifest import (
    SCHEMA_VERSION,
    Manifest,
    dump_manifest,
    find_manifests,
    load_manifest,
    manifest_path,
    manifest_schema,
    read_manifest,
)
from pytest_autoquant.reports.write import write_case

SCHEMA_FILE = Path(__file__).parents[3] / "docs" / "manifest.schema.json"
REGENERATE = (
    "the schema changed: regenerate docs/manifest.schema.json with\n  python -c 'import json; "
    "from pytest_autoquant.manifests.sensitivity_manifest import manifest_schema; "
    "print(json.dumps(manifest_schema(), indent=2))' > docs/manifest.schema.json"
)
HOSTILE_NAMES = [
    "../../etc",
    "..",
    ".",
    "/etc/passwd",
    "C:\\windows",
    "<script>alert(1)</script>",
    "a|b`c`",
    "line\nbreak\x00null",
    "-rf",
    "",
    "   ",
    "模型",
    "x" * 5000,
    "../" * 500,
]

json_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("1", "-1", 10**400, "\ud800", SCHEMA_VERSION))
)
json_values = st.recursive(
    json_leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree, path=()):
    """Every path into a JSON document."""
    yield path
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def container_of(tree, path):
    for key in path[:-1]:
        tree = tree[key]
    return tree


def strict(text):
    """Parse JSON that every language's parser accepts: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def with_case_names(manifest, name):
    case = replace(manifest.case, pair=name, weight=name, activation=name, granularity=name)
    return replace(manifest, case=case, model=replace(manifest.model, name=name))


def test_what_is_dumped_is_loaded_again(manifest):
    text = dump_manifest(manifest)
    assert text.endswith("}\n")
    assert load_manifest(text, source="x") == manifest
    assert load_manifest(text.encode(), source="x") == manifest
    assert dump_manifest(load_manifest(text, source="x")) == text


def test_the_file_holds_the_keys_that_readers_rely_on(manifest):
    document = strict(dump_manifest(manifest))
    assert set(document) == {
        *("schema_version", "case", "scheme", "model", "dataset", "quantization"),
        *("num_quantized_layers", "layers", "layer_sensitivity", "sensitivity_ranking"),
        *("autoquant_state", "environment", "timing", "memory", "run_config"),
    }
    assert {
        *("base_format_name", "quant_granularity", "effective_quant_cfg"),
        *("effective_quantizer_summary", "digest"),
    } <= set(document["quantization"])
    assert set(document["quantization"]["quant_granularity"]) == {"name", "quant_cfg_overrides"}
    assert {"constraints", "score", "is_satisfied"} <= set(document["autoquant_state"])
    assert document["schema_version"] == SCHEMA_VERSION


def test_a_number_that_json_cannot_hold_is_written_as_null(manifest):
    state = replace(manifest.autoquant_state, score=float("nan"), total_score=float("inf"))
    text = dump_manifest(replace(manifest, autoquant_state=state))
    assert strict(text)["autoquant_state"]["score"] is None
    assert load_manifest(text, source="x").autoquant_state.total_score is None


def test_the_published_schema_is_the_current_one():
    current = json.dumps(manifest_schema(), indent=2) + "\n"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == current, REGENERATE


def test_a_manifest_follows_the_published_schema_and_a_changed_one_does_not(manifest):
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads(dump_manifest(manifest))
    assert list(validator.iter_errors(document)) == []
    document["case"]["status"] = "fine"
    document["model"]["colour"] = "blue"
    del document["dataset"]["sha256"]
    found = {error.json_path: error.validator for error in validator.iter_errors(document)}
    assert found == {
        "$.case.status": "enum",
        "$.model": "additionalProperties",
        "$.dataset": "required",
    }


def test_a_newer_schema_is_refused_with_both_versions(manifest):
    document = json.loads(dump_manifest(manifest)) | {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(RecordError) as caught:
        load_manifest(json.dumps(document), source="old/place.json")
    assert str(caught.value) == (
        f"old/place.json: written by a newer version: schema {SCHEMA_VERSION + 1}, this one reads "
        f"up to {SCHEMA_VERSION}; upgrade pytest-autoquant"
    )


@pytest.mark.parametrize(
    "path",
    [
        ("model", "digest"),
        ("memory",),
        ("autoquant_state", "minimum_effective_bits"),
        ("layers", "model.language_model.layers.0.mlp.up_proj", "group"),
        ("sensitivity_ranking", 1, "name"),
    ],
)
def test_a_missing_field_is_named(manifest, path):
    document = json.loads(dump_manifest(manifest))
    del container_of(document, path)[path[-1]]
    with pytest.raises(RecordError) as caught:
        load_manifest(json.dumps(document), source="x.json")
    where = ".".join(map(str, path))
    assert str(caught.value).startswith(f"x.json: is not a valid manifest: {where}: Field required")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("case", "method"), "magic"),
        (("case", "experimental"), "perhaps"),
        (("num_quantized_layers",), 1.5),
        (("dataset", "token_lengths"), {"long": 3}),
        (("run_config", "colour"), "blue"),
        (("layer_sensitivity",), []),
    ],
)
def test_a_malformed_or_unknown_field_is_named(manifest, path, value):
    document = json.loads(dump_manifest(manifest))
    container_of(document, path)[path[-1]] = value
    with pytest.raises(RecordError, match=r"^x\.json: is not a valid manifest: ") as caught:
        load_manifest(json.dumps(document), source="x.json")
    assert ".".join(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ('{"schema_version": 1', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("null", "is not a manifest: it has no schema_version"),
        ("[1]", "is not a manifest: it has no schema_version"),
        ("{}", "is not a manifest: it has no schema_version"),
        ('{"schema_version": "1"}', "is not a manifest: it has no schema_version"),
        ('{"schema_version": 1}', "is not a valid manifest: case: Field required"),
    ],
)
def test_what_is_no_manifest_is_said_with_its_source(content, said):
    with pytest.raises(RecordError) as caught:
        load_manifest(content, source="x.json")
    assert str(caught.value).startswith(f"x.json: {said}")


@settings(deadline=None, max_examples=200)
@given(content=st.text() | st.binary() | json_values.map(json.dumps))
def test_any_text_is_refused_in_our_words(content):
    with pytest.raises(RecordError, match=r"^x: "):
        load_manifest(content, source="x")


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_manifest_is_a_manifest_or_refused_in_our_words(manifest, data):
    document = json.loads(dump_manifest(manifest))
    for _ in range(data.draw(st.integers(1, 3), label="damages")):
        path = data.draw(st.sampled_from([p for p in places(document) if p]), label="place")
        holder = container_of(document, path)
        if data.draw(st.booleans(), label="delete"):
            del holder[path[-1]]
        else:
            holder[path[-1]] = data.draw(json_values, label="value")
    try:
        outcome = load_manifest(json.dumps(document), source="x")
    except RecordError as error:
        outcome = str(error)
    assert isinstance(outcome, Manifest) or outcome.startswith("x: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "away.json", tmp_path):
        with pytest.raises(RecordError) as caught:
            read_manifest(path)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")


def test_manifests_are_found_below_a_folder_in_path_order(tmp_path, manifest):
    other = replace(manifest, model=replace(manifest.model, name="a-model"))
    written = [write_case(tmp_path, m) for m in (manifest, other)]
    (tmp_path / "quant_manifest.json").write_text("{}")
    assert find_manifests(tmp_path) == sorted(written)
    assert read_manifest(written[1]) == other
    assert find_manifests(tmp_path / "away") == []


def test_a_case_lies_where_its_names_say(manifest):
    assert manifest.path.as_posix() == (
        "toy/weight-int4-act-int8/a_per_token_dynamic/small/"
        "wint4_aint8_autoquant_lm_quant_manifest.json"
    )
    kl_div = replace(manifest, case=replace(manifest.case, method="kl_div"))
    assert kl_div.path.parent.name == "small-kl_div"


def test_no_two_cases_of_the_grid_share_a_path():
    paths = [
        manifest_path(
            model=case.model,
            pair=case.combination.pair.name,
            weight=case.combination.pair.weight,
            activation=case.combination.pair.activation,
            granularity=case.combination.granularity.name,
            size=case.size,
            method=method,
        )
        for method in METHODS
        for case in cases(load_vocabulary(), SIZES, model="toy", method=method)
    ]
    assert len({path.parent for path in paths}) == len(paths) == 2 * 3 * 24 * 10


def test_a_pair_of_its_own_name_has_its_own_folder_beside_the_built_in_one():
    case = {"model": "toy", "weight": "int4", "activation": "fp16", "granularity": "default"}
    case |= {"size": "small", "method": "gradient"}
    assert manifest_path(pair="wint4_afp16", **case).parts[1] == "weight-int4-act-fp16"
    assert manifest_path(pair="awq", **case).parts[1] == "weight-int4-act-fp16-awq"


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_written_inside_the_report_folder(tmp_path, manifest, name):
    root = tmp_path / "reports"
    path = write_case(root, with_case_names(manifest, name))
    assert path.resolve().is_relative_to(root.resolve())
    assert [entry.name for entry in tmp_path.iterdir()] == ["reports"]
    parts = path.relative_to(root).parts
    assert len(parts) == 5
    assert all(set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for part in parts)
    assert not {".", ".."} & set(parts)


@settings(max_examples=200)
@given(name=st.text(max_size=400))
def test_any_name_gives_five_safe_path_parts(name):
    path = manifest_path(
        model=name,
        pair=name,
        weight=name,
        activation=name,
        granularity=name,
        size="small",
        method="gradient",
    )
    assert len(path.parts) == 5
    for part in path.parts:
        assert part not in (".", "..")
        assert not part.startswith((".", "-"))
        assert len(part) <= 255
