"""``aq-harness render``: rebuild reports."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_autoquant.cli.command import FAILED, OK, Command
from pytest_autoquant.errors import RecordError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that holds manifests")


def render(arguments: argparse.Namespace) -> int:
    """Rebuild every report under a folder from its manifests."""
    from pytest_autoquant.reports.rebuild import rebuild, rebuilt_report

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give one that holds manifests")
    results = rebuild(folder)
    print(rebuilt_report(folder, results))
    return FAILED if results.left_out else OK


COMMAND = Command(
    name="render",
    summary="rebuild every report from its manifests",
    add_arguments=add_arguments,
    run=render,
)
