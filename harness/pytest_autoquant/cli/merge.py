"""``aq-harness merge``: join report folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_autoquant.cli.command import FAILED, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the report folders and the folder to write."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="report folders")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--partial", action="store_true", help="merge incomplete runs too")


def merge(arguments: argparse.Namespace) -> int:
    """Join the report folders of shards, or of other independent runs, into one."""
    from pytest_autoquant.reports import merge as reports
    from pytest_autoquant.reports.markdown.session.sentences import counts_sentence
    from pytest_autoquant.reports.session_results import caution

    results = reports.merge(arguments.folders, arguments.into, partial=arguments.partial)
    for reason in results.left_out:
        print(f"left out: {reason}")
    for sentence in filter(None, [caution(results)]):
        print(sentence)
    print(f"{arguments.into}: {counts_sentence(results)}")
    return FAILED if results.failures or results.gated or results.lost else OK


COMMAND = Command(
    name="merge",
    summary="join report folders of independent runs",
    add_arguments=add_arguments,
    run=merge,
)
