"""``aq-harness select``: the selection at a bit budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_autoquant.cli.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the manifests and the budget."""
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="MANIFEST", help="sensitivity manifest or folder"
    )
    parser.add_argument(
        "--bits", type=float, required=True, metavar="B", help="most bits stored per weight"
    )


def select(arguments: argparse.Namespace) -> int:
    """Print the format of every layer group at a bit budget, and its predicted score."""
    from pytest_autoquant.grid.vocabulary import load_vocabulary
    from pytest_autoquant.recipes.choose import Budget, choose
    from pytest_autoquant.recipes.curve import selection_text
    from pytest_autoquant.recipes.sources import read_measured

    measured = read_measured(arguments.paths, load_vocabulary())
    budget = Budget(measure="effective_bits", amount=arguments.bits)
    print(selection_text(choose(measured, budget)), end="")
    return OK


COMMAND = Command(
    name="select",
    summary="print the format of every layer group at a bit budget",
    add_arguments=add_arguments,
    run=select,
)
