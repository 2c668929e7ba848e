"""ModelOpt's decision units: which linears share a format, and where their damage is scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pytest_autoquant.models.loading import LoadedModel


def layer_groups(model: LoadedModel) -> tuple[tuple[str, ...], ...]:
    """Return the members of every layer group, by ModelOpt's own grouping rules."""
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    groups: dict[str, list[str]] = {}
    for linear in model.linears:
        key = _first_match(AutoQuantizeGradientSearcher.quant_grouping_rules, model, linear.name)
        groups.setdefault(linear.name if key is None else key, []).append(linear.name)
    return tuple(tuple(members) for members in groups.values())


def scored_elsewhere(model: LoadedModel) -> str | None:
    """Name a linear that ModelOpt does not score at a linear's output, None if there is none.

    So it is for the experts of a mixture, fused or not.
    """
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    rules = AutoQuantizeGradientSearcher.score_module_rules
    for linear in model.linears:
        if linear.is_fused or _first_match(rules, model, linear.name) not in (None, linear.name):
            return linear.name
    return None


def _first_match(rules: Sequence[Any], model: LoadedModel, name: str) -> str | None:
    for rule in rules:
        if callable(rule):
            key = rule(model.module, name)
        else:
            match = re.match(rule, name)
            key = match.group(1) if match else None
        if key is not None:
            return str(key)
    return None
