"""Plain lists of modules, to paste."""

from __future__ import annotations

from pytest_autoquant.recipes.decision import Decision


def recipe(decision: Decision) -> dict[str, list[str]]:
    """Return the linears of each format by its name, then those that stay in 16 bits."""
    lists = {format.name: list(decision.modules_in(format)) for format in decision.formats}
    return {**lists, "16-bit": list(decision.modules_in(None))}
