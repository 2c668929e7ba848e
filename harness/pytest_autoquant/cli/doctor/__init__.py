"""``aq-harness doctor``: check whether AutoQuant can run on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pytest_autoquant.cli.command import FAILED, OK, Command, announce
from pytest_autoquant.cli.doctor.check import Check, can_run, render_checks
from pytest_autoquant.cli.doctor.compilers import check_compilers
from pytest_autoquant.cli.doctor.measuring import check_measuring
from pytest_autoquant.cli.doctor.packages import check_packages
from pytest_autoquant.extras import missing_modules
from pytest_autoquant.text import in_words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the command takes no arguments."""


def doctor(arguments: argparse.Namespace) -> int:
    """Check Python, packages, compilers, GPUs and ModelOpt's quantizers."""
    checks = examine(announce)
    print(render_checks(checks))
    return OK if can_run(checks) else FAILED


def examine(announce: Callable[[str], None]) -> tuple[Check, ...]:
    """Run every check.

    Args:
        announce: called with a line of text before anything slow.
    """
    checks = [*check_packages(), *check_compilers()]
    if missing_modules():
        return tuple(checks)  # reported by check_packages
    try:
        # extend() keeps the checks that came before an error.
        checks.extend(check_measuring(announce))
    except Exception as error:  # a broken torch, a failing driver, a ModelOpt that moved a name
        checks.append(Check(name="torch and ModelOpt", status="missing", found=in_words(error)))
    return tuple(checks)


COMMAND = Command(
    name="doctor",
    summary="check whether AutoQuant can run on this machine",
    add_arguments=add_arguments,
    run=doctor,
)
