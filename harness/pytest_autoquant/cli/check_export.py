"""``aq-harness check-export``: static checks of an exported checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_autoquant.cli.command import FAILED, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="exported checkpoint")


def check_export(arguments: argparse.Namespace) -> int:
    """Print which rules of vLLM's ModelOpt loader an exported checkpoint breaks."""
    from pytest_autoquant.export.vllm_rules import export_report, find_violations, read_export

    export = read_export(arguments.folder)
    violations = find_violations(export)
    print(export_report(arguments.folder, export, violations))
    return FAILED if violations else OK


COMMAND = Command(
    name="check-export",
    summary="check an exported checkpoint for vLLM",
    add_arguments=add_arguments,
    run=check_export,
)
