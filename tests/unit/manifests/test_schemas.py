"""JSON schemas of the records: published as generated, and followed by what is written."""

import json
from pathlib import Path

import jsonschema
import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.manifests.records.schemas import SCHEMAS, schema_text
from pytest_autoquant.manifests.records.scheme_manifest import dump_scheme
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest
from pytest_autoquant.manifests.records.session_summary import dump_summary

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def documents(manifest, scheme, summary):
    """One document of every record, by schema name."""
    texts = {
        "manifest": dump_manifest(manifest),
        "scheme_manifest": dump_scheme(scheme),
        "session_summary": dump_summary(summary),
    }
    return {name: json.loads(text) for name, text in texts.items()}


@pytest.mark.parametrize("name", SCHEMAS)
def test_published_schema_is_current(name):
    published = (DOCS / f"{name}.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(name), (
        f"the schema changed: run 'aq-harness schema {name} > docs/{name}.schema.json'"
    )


def test_every_published_schema_has_a_record():
    assert {path.name for path in DOCS.glob("*.schema.json")} == {
        f"{name}.schema.json" for name in SCHEMAS
    }


@pytest.mark.parametrize(
    ("name", "part", "field", "required"),
    [
        ("manifest", "case", "status", "case"),
        ("manifest", "dataset", "sha256", "dataset"),
        ("scheme_manifest", "scheme", "target", "scheme"),
        ("session_summary", "counts", "lost", "cases"),
    ],
)
def test_record_follows_its_schema_and_an_altered_one_does_not(
    documents, name, part, field, required
):
    schema = json.loads(schema_text(name))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = documents[name]
    assert list(validator.iter_errors(document)) == []
    document[part]["colour"] = "blue"
    document[part][field] = []
    errors = {error.json_path: error.validator for error in validator.iter_errors(document)}
    assert errors.keys() == {f"$.{part}", f"$.{part}.{field}"}
    assert errors[f"$.{part}"] == "additionalProperties"
    del document[part]
    document.pop(required, None)
    assert [e.validator for e in validator.iter_errors(document)] == ["required"]


def test_unknown_schema_is_refused():
    with pytest.raises(UsageError) as caught:
        schema_text("manifests")
    assert str(caught.value) == (
        "schema 'manifests' is unknown (did you mean 'manifest'?); known: manifest, "
        "scheme_manifest, session_summary; give one of these names"
    )
