"""The result of one check, and the table of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tabulate import tabulate

CheckStatus = Literal["ok", "missing", "warning"]

_FOUND_COLUMN_WIDTH = 76


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        status: ``missing``: AutoQuant cannot run; ``warning``: some configurations cannot run.
        found: the version, device or error that the check saw.
        advice: what to do, a command where one does it; empty if nothing is to be done.
    """

    name: str
    status: CheckStatus
    found: str
    advice: str = ""


def can_run(checks: Sequence[Check]) -> bool:
    """Whether nothing that AutoQuant needs is missing."""
    return all(check.status != "missing" for check in checks)


def render_checks(checks: Sequence[Check]) -> str:
    """Return a table of the checks, then each advice with its checks, then the verdict."""
    table = tabulate(
        [(check.name, check.status, check.found) for check in checks],
        headers=("check", "status", "found"),
        tablefmt="simple",
        maxcolwidths=[None, None, _FOUND_COLUMN_WIDTH],
        disable_numparse=True,
    )
    verdict = "can run" if can_run(checks) else "cannot run"
    return "\n".join([table, "", *_advice(checks), f"AutoQuant {verdict} on this machine"])


def _advice(checks: Sequence[Check]) -> list[str]:
    """Return the advice outside the table: a command that wraps in a column cannot be copied."""
    names: dict[str, list[str]] = {}
    for check in checks:
        if check.advice:
            names.setdefault(check.advice, []).append(check.name)
    lines = [f"{', '.join(who)}:\n    {advice}" for advice, who in names.items()]
    return [*lines, ""] if lines else []
