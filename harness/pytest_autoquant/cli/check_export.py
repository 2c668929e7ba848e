"""``aq-harness check-export``: static checks of an exported checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_autoquant.cli.command import FAILED, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint and its source."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="exported checkpoint")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="the checkpoint that was quantized: its chat template must be in the export",
    )


def check_export(arguments: argparse.Namespace) -> int:
    """Print which rules of vLLM's ModelOpt loader an exported checkpoint breaks.

    Rules that do not apply to its architecture are no success: the exit status is 1 as well.
    """
    from pytest_autoquant.export.vllm_rules import export_report, find, read_export

    export = read_export(arguments.folder, source=arguments.source)
    found = find(export)
    print(export_report(arguments.folder, export, found))
    return FAILED if found.violations or found.not_checked is not None else OK


COMMAND = Command(
    name="check-export",
    summary="check an exported checkpoint for vLLM",
    add_arguments=add_arguments,
    run=check_export,
)
