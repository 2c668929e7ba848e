"""``aq-harness schema``: JSON schemas of the files that a run writes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from pytest_autoquant.cli.command import OK, Command


def _sensitivity() -> dict[str, Any]:
    from pytest_autoquant.manifests.sensitivity_manifest import manifest_schema

    return manifest_schema()


#: The kinds of record by the name that the command takes.
SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "sensitivity": _sensitivity,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the kind of record."""
    parser.add_argument("record", choices=tuple(SCHEMAS), help="kind of record")


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON schema of a record: a case's manifest, a scheme's, or the run's summary."""
    print(json.dumps(SCHEMAS[arguments.record](), indent=2))
    return OK


COMMAND = Command(
    name="schema",
    summary="print the JSON schema of a manifest or of summary.json",
    add_arguments=add_arguments,
    run=schema,
)
