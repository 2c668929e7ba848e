"""Decisions as tables: the selection at one budget, and the curve over all budgets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable

from tabulate import tabulate

from pytest_autoquant.recipes.decision import Decision
from pytest_autoquant.recipes.tools import origin

#: Columns of the curve: bits per weight as the budget counts them, predicted score per token.
COLUMNS = ("effective_bits", "score", "quantized_groups", "groups")


def selection_text(decision: Decision) -> str:
    """Return a line per layer group in model order, after those of ``origin``."""
    rows = [
        (
            group.name,
            "16-bit" if group.format is None else group.format.name,
            "" if group.score is None else f"{group.score:.4g}",
            "" if group.bits is None else f"{group.bits:.4f}",
        )
        for group in decision.groups
    ]
    table = tabulate(
        rows, ("group", "format", "score", "bits"), tablefmt="plain", disable_numparse=True
    )
    return "\n".join((*origin(decision), "", table)) + "\n"


def curve_csv(decisions: Iterable[Decision]) -> str:
    """Return the curve as CSV with a header."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(_point, decisions))
    return stream.getvalue()


def curve_json(decisions: Iterable[Decision]) -> str:
    """Return the curve as a JSON list of objects with the same keys."""
    points = [dict(zip(COLUMNS, _point(decision), strict=True)) for decision in decisions]
    return json.dumps(points, indent=2) + "\n"


def _point(decision: Decision) -> tuple[float | int, ...]:
    quantized = sum(1 for _ in decision.quantized)
    return decision.rule.amount, decision.score, quantized, len(decision.groups)
