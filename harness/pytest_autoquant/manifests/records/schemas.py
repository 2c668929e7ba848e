"""The JSON schemas of the records, by name; ``docs/NAME.schema.json`` holds each."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pytest_autoquant.manifests.records.json_record import record_schema
from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
from pytest_autoquant.manifests.records.session_summary import SessionSummary
from pytest_autoquant.text import unknown

#: Record types by the name of their schema.
SCHEMAS: Mapping[str, type] = {
    "manifest": Manifest,
    "scheme_manifest": SchemeManifest,
    "session_summary": SessionSummary,
}


def schema_text(name: str) -> str:
    """Return a JSON schema as indented JSON with a final newline.

    Raises:
        UsageError: ``SCHEMAS`` has no such name.
    """
    if name not in SCHEMAS:
        raise unknown("schema", name, SCHEMAS, "give one of these names")
    return json.dumps(record_schema(SCHEMAS[name]), indent=2) + "\n"
