"""The command line ``aq-harness``: everything that does not run tests.

One module per command. Nothing here imports torch, transformers or ModelOpt before a command needs
it.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from pytest_autoquant import __version__
from pytest_autoquant.cli import (
    check_export,
    compare,
    doctor,
    frontier,
    list_support,
    merge,
    recipe,
    render,
    schema,
    select,
)
from pytest_autoquant.cli.command import FAILED, INTERRUPTED, USAGE_ERROR
from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.platforms import check_platform

COMMANDS = (
    list_support.COMMAND,
    render.COMMAND,
    compare.COMMAND,
    merge.COMMAND,
    select.COMMAND,
    frontier.COMMAND,
    recipe.COMMAND,
    check_export.COMMAND,
    schema.COMMAND,
    doctor.COMMAND,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Its exit status: 0 success, 1 something wrong in what was examined, 2 wrong usage or
        unreadable input, 130 interrupted.
    """
    _escape_unencodable_output()
    arguments = _parser().parse_args(argv)
    try:
        check_platform()
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except AutoquantError as error:
        for problem in str(error).splitlines():
            print(f"aq-harness: {problem}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`); Python must not fail again flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _escape_unencodable_output() -> None:
    """Escape characters that the terminal's encoding lacks: an ASCII locale, odd file names."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aq-harness",
        description="Quantization sensitivity with ModelOpt AutoQuant: commands that run no tests.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.run.__doc__,
            allow_abbrev=False,
        )
        subparser.set_defaults(run=command.run)
        command.add_arguments(subparser)
    return parser
