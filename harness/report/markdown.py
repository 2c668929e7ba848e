"""Markdown pieces whose text cannot break out of its place."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

from harness.names import one_line

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&])")

SCORE_MEANS = (
    "A score is the expected damage of quantizing one layer group alone: the squared change that "
    "quantization makes in each output, weighted by the squared gradient of the loss there, summed "
    "over the group and divided by the number of scored tokens. It ranks groups and compares "
    "configurations of one model on the same captions; it is not a loss and not an accuracy."
)
GROUPS_MEAN = (
    "A group is named after its first linear: q_proj stands for q, k and v together, gate_proj for "
    "gate and up."
)
KL_SCORE_MEANS = (
    "A score is the KL divergence in nats per scored token between the model with one layer group "
    "quantized and the unquantized model. It ranks groups and compares configurations of one model "
    "on the same captions; it is not an accuracy."
)


def text(value: object) -> str:
    """Return ``value`` as running text: every Markdown or HTML character escaped, one line."""
    return _SPECIAL.sub(r"\\\1", one_line(value))


def code(value: object) -> str:
    """Return ``value`` as an inline code span that is safe in a table cell."""
    flat = one_line(value).replace("`", "'").replace("|", "\\|")
    return f"`{flat}`" if flat.strip() else ""


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: str = "") -> str:
    """Return a GitHub table of ready-made cells.

    Args:
        right: one letter per column, ``r`` for right-aligned; the others are left-aligned.
    """
    align = ["right" if c == "r" else "left" for c in right.ljust(len(headers))]
    return tabulate(
        rows,
        headers=headers,
        tablefmt="pipe",
        colalign=align if rows else None,
        disable_numparse=True,
    )


def number(value: float | None) -> str:
    """Return a score with four significant digits, ``n/a`` where there is none."""
    return "n/a" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Return a share of one as a percentage, ``n/a`` where there is none."""
    return "n/a" if value is None else f"{100 * value:.1f}%"
