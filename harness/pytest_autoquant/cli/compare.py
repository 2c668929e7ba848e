"""``aq-harness compare``: differences between two runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_autoquant.cli.command import FAILED, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two runs and the page."""
    parser.add_argument("before", type=Path, metavar="A", help="report folder or manifest")
    parser.add_argument("after", type=Path, metavar="B", help="report folder or manifest")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write both as one page")


def compare(arguments: argparse.Namespace) -> int:
    """Print how the cases of run B differ from the same cases of run A."""
    from pytest_autoquant.reports.markdown.comparison_report import compare_markdown
    from pytest_autoquant.reports.rebuild import unpublished_lines
    from pytest_autoquant.reports.run_comparison import compare_runs

    comparison = compare_runs(arguments.before, arguments.after)
    print(compare_markdown(comparison), end="")
    for folder in (arguments.before, arguments.after):
        for line in unpublished_lines(folder):
            print(f"\n{line}")
    if arguments.html is not None:
        from pytest_autoquant.reports.write import write_comparison

        write_comparison(arguments.html, comparison)
        print(f"\nwrote {arguments.html}")
    return FAILED if comparison.left_out else OK


COMMAND = Command(
    name="compare",
    summary="compare two runs of the same cases, or any two manifests",
    add_arguments=add_arguments,
    run=compare,
)
