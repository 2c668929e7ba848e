"""``aq-harness frontier``: the least predicted score at every bit budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_autoquant.cli.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the manifests, the form and the file."""
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="MANIFEST", help="sensitivity manifest or folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of CSV")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write")


def frontier(arguments: argparse.Namespace) -> int:
    """Print every selection that no other one matches in bits with less predicted score."""
    from pytest_autoquant.files import write_atomic
    from pytest_autoquant.grid.vocabulary import load_vocabulary
    from pytest_autoquant.recipes import choose
    from pytest_autoquant.recipes.curve import curve_csv, curve_json
    from pytest_autoquant.recipes.sources import read_measured

    decisions = choose.frontier(read_measured(arguments.paths, load_vocabulary()))
    text = curve_json(decisions) if arguments.json else curve_csv(decisions)
    if arguments.output is None:
        print(text, end="")
    else:
        write_atomic(arguments.output, text)
        print(f"wrote {arguments.output}")
    return OK


COMMAND = Command(
    name="frontier",
    summary="print the least predicted score at every bit budget",
    add_arguments=add_arguments,
    run=frontier,
)
