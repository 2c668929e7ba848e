"""The tools that recipes are for, and recipes as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pytest_autoquant.recipes import auto_round, gptqmodel, llm_compressor, modelopt, modules
from pytest_autoquant.recipes.decision import Decision
from pytest_autoquant.text import one_line

#: What makes a recipe, by tool. Each raises ``UsageError`` for what its tool cannot express.
TOOLS: Mapping[str, Callable[[Decision], Any]] = MappingProxyType(
    {
        "modelopt": modelopt.recipe,
        "llm-compressor": llm_compressor.recipe,
        "auto-round": auto_round.recipe,
        "gptqmodel": gptqmodel.recipe,
        "modules": modules.recipe,
    }
)


def recipe_yaml(decision: Decision, tool: str) -> str:
    """Return the recipe for one of ``TOOLS`` as YAML, after comments that say where it is from.

    Raises:
        UsageError: the tool cannot express the decision.
    """
    import yaml

    body = yaml.safe_dump(TOOLS[tool](decision), sort_keys=False, width=100)
    # A name or note with a line break must not end the comment.
    comments = "".join(f"# {one_line(line)}\n" for line in origin(decision))
    return comments + body


def origin(decision: Decision) -> list[str]:
    """Return sentences on the model, the rule and what it predicts."""
    digest = "unknown" if decision.digest is None else decision.digest[:16]
    rule = decision.rule
    return [
        f"model {decision.model}, digest {digest}",
        f"{rule.measure} {rule.amount:.15g}; candidates {', '.join(rule.candidates)}",
        f"{decision.effective_bits:.4f} bits per weight stored, predicted score "
        f"{decision.score:.4g} per token ({decision.method or 'unknown'} method)",
        *decision.notes,
    ]
