"""``aq-harness recipe``: a decision in the form that another tool reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_autoquant.cli.command import OK, Command

if TYPE_CHECKING:
    from pytest_autoquant.recipes.choose import Budget

#: The names of ``recipes.tools.TOOLS``, without its imports.
TOOL_NAMES = ("modelopt", "llm-compressor", "auto-round", "gptqmodel", "modules")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the manifests, the tool, the budget and the file."""
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="scheme manifest, or sensitivity ones"
    )
    parser.add_argument("--for", dest="tool", required=True, choices=TOOL_NAMES, help="the tool")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--bits", type=float, metavar="B", help="most bits stored per weight")
    budget.add_argument(
        "--fraction", type=float, metavar="F", help="fraction of layer groups, of one candidate"
    )
    budget.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="most KL divergence, in nats per token, summed over the layer groups",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write")


def recipe(arguments: argparse.Namespace) -> int:
    """Print, or write, which linears another tool should quantize to which format.

    Give a scheme manifest, or sensitivity manifests (or folders of them) of one model with a
    budget.
    """
    from pytest_autoquant.files import write_atomic
    from pytest_autoquant.grid.vocabulary import load_vocabulary
    from pytest_autoquant.recipes.sources import read_decision
    from pytest_autoquant.recipes.tools import recipe_yaml

    decision = read_decision(arguments.paths, _budget(arguments), load_vocabulary())
    text = recipe_yaml(decision, arguments.tool)
    if arguments.output is None:
        print(text, end="")
    else:
        write_atomic(arguments.output, text)
        print(f"wrote {arguments.output}")
    return OK


def _budget(arguments: argparse.Namespace) -> Budget | None:
    from pytest_autoquant.recipes.choose import Budget

    if arguments.bits is not None:
        return Budget(measure="effective_bits", amount=arguments.bits)
    if arguments.fraction is not None:
        return Budget(measure="fraction_of_groups", amount=arguments.fraction)
    if arguments.max_kl is not None:
        return Budget(measure="max_kl", amount=arguments.max_kl)
    return None


COMMAND = Command(
    name="recipe",
    summary="print a decision for a quantization tool, or as lists",
    add_arguments=add_arguments,
    run=recipe,
)
