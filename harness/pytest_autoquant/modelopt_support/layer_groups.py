"""ModelOpt's decision units: which linears share a format, and where their scores are taken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from pytest_autoquant.modelopt_support.private_api import (
    GroupingRule,
    grouping_rules,
    quantizes_each_expert,
    score_module_rules,
)
from pytest_autoquant.models.layers import Linear


class GroupedModel(Protocol):
    """A model, loaded or on the meta device, with the linears that are measured."""

    @property
    def module(self) -> Any: ...

    @property
    def linears(self) -> tuple[Linear, ...]: ...


def layer_groups(model: GroupedModel) -> tuple[tuple[str, ...], ...]:
    """Return the members of every layer group, by ModelOpt's own grouping rules.

    Source: ``_AutoQuantizeBaseSearcher.insert_hparams_after_merge_rules`` in
    ``modelopt/torch/quantization/algorithms.py`` (0.47.0).
    """
    rules = grouping_rules()
    groups: dict[str, list[str]] = {}
    for linear in model.linears:
        key = _group_key(rules, model, linear.name)
        groups.setdefault(linear.name if key is None else key, []).append(linear.name)
    return tuple(tuple(members) for members in groups.values())


def scored_elsewhere(model: GroupedModel) -> str | None:
    """Name a linear that is not scored at the output of its own module, None if there is none.

    ModelOpt scores experts that are linears of their own at the output of the mixture block, and
    splits some fused ones into linears. Those that it leaves fused are one module, whose output is
    the block's.
    """
    rules = score_module_rules()
    for linear in model.linears:
        if linear.is_fused:
            if not quantizes_each_expert(model.module.get_submodule(linear.name)):
                return linear.name
        elif _group_key(rules, model, linear.name) not in (None, linear.name):
            return linear.name
    return None


def _group_key(rules: Sequence[GroupingRule], model: GroupedModel, name: str) -> str | None:
    """Apply the rules in order; the first that matches names the group."""
    for rule in rules:
        if callable(rule):
            key = rule(model.module, name)
        else:
            match = re.match(rule, name)
            key = match.group(1) if match else None
        if key is not None:
            return str(key)
    return None
