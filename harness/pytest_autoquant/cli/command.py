"""What every command of ``aq-harness`` provides."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

#: Exit statuses: success; the command ran and found something wrong; it was used wrongly; Ctrl-C.
OK, FAILED, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: its name on the command line.
        summary: one line in ``aq-harness --help``.
        add_arguments: declares its arguments.
        run: executes it; returns the exit status, prints results to stdout.
    """

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def announce(text: str) -> None:
    """Print a line of progress to stderr."""
    print(f"aq-harness: {text}", file=sys.stderr, flush=True)
