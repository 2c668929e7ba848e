"""``aq-harness schema``: JSON schemas of the files that a run writes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from pytest_autoquant.cli.command import OK, Command

#: The record's name on the command line: its name in ``manifests.schemas``.
RECORDS: Mapping[str, str] = {
    "sensitivity": "manifest",
    "scheme": "scheme_manifest",
    "summary": "session_summary",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the kind of record."""
    parser.add_argument("record", choices=tuple(RECORDS), help="kind of record")


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON schema of a record: a case's manifest, a scheme's, or summary.json."""
    from pytest_autoquant.manifests.records.schemas import schema_text

    print(schema_text(RECORDS[arguments.record]), end="")
    return OK


COMMAND = Command(
    name="schema",
    summary="print the JSON schema of a manifest or of summary.json",
    add_arguments=add_arguments,
    run=schema,
)
