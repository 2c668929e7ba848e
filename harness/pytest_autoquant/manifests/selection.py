"""The selection of layer groups under a bit budget, from what a manifest records.

Scores do not depend on the budget, so a manifest answers every budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_autoquant.allocation.scored_group import Cost, ScoredGroup, active_bits
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    AutoquantState,
    Constraints,
    GroupSensitivity,
    Manifest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedGroups:
    """The groups that a budget keeps quantized.

    Attributes:
        names: keys of ``Manifest.layer_sensitivity``.
    """

    names: frozenset[str]
    state: AutoquantState


def select_groups(
    groups: Mapping[str, GroupSensitivity], budget: float, cost: Cost = "stored"
) -> SelectedGroups:
    """Select the groups that stay quantized with the least total score within a budget.

    Args:
        groups: scores and costs of the case's format and of not quantizing, in module order.
        budget: most bits per weight, over all groups.
        cost: which weights the budget counts.
    """
    from pytest_autoquant.allocation.knapsack import select_formats  # imports numpy

    if not groups:
        return SelectedGroups(names=frozenset(), state=_nothing_to_select(budget))
    scored = scored_groups(list(groups.values()))
    choices = [each.with_unquantized() for each in scored]
    selection = select_formats([each.counted_by(cost) for each in choices], budget)
    taken = list(zip(choices, selection.chosen, strict=True))
    chosen = [
        name
        for name, group, i in zip(groups, scored, selection.chosen, strict=True)
        if i < len(group.takeable)
    ]
    state = AutoquantState(
        constraints=Constraints(effective_bits=budget),
        score=_total([groups[name].scores[0] for name in chosen]),
        total_score=_total([group.scores[0] for group in groups.values()]),
        effective_bits=sum(group.stored_bits[i] for group, i in taken)
        / sum(group.weights for group in choices),
        active_bits=active_bits(choices, [group.bits[i] for group, i in taken]),
        minimum_effective_bits=selection.minimum_effective_bits,
        is_satisfied=selection.is_satisfied,
    )
    return SelectedGroups(names=frozenset(chosen), state=state)


def with_budget(manifest: Manifest, budget: float, cost: Cost = "stored") -> Manifest:
    """Return a manifest as a run with another bit budget would have written it."""
    run = manifest.run_config
    if (run.effective_bits, run.cost) == (budget, cost):
        return manifest
    selected = select_groups(manifest.layer_sensitivity, budget, cost)
    return replace(
        manifest,
        scheme=replace(manifest.scheme, auto_quantize_bits=budget),
        layers={
            name: replace(layer, selected=layer.group in selected.names)
            for name, layer in manifest.layers.items()
        },
        autoquant_state=selected.state,
        run_config=replace(run, effective_bits=budget, cost=cost),
    )


def _nothing_to_select(budget: float) -> AutoquantState:
    return AutoquantState(
        constraints=Constraints(effective_bits=budget),
        score=0.0,
        total_score=0.0,
        effective_bits=UNQUANTIZED_BITS,
        minimum_effective_bits=UNQUANTIZED_BITS,
        is_satisfied=False,
    )


def scored_groups(groups: Sequence[GroupSensitivity]) -> list[ScoredGroup]:
    """Return the groups with a case's one format; one without a score is never worth taking."""
    finite = [group.scores[0] for group in groups if group.scores[0] is not None]
    ceiling = max(finite, default=1.0) * len(groups) or 1.0
    return [
        ScoredGroup(
            name=group.module_names[0],
            scores=(ceiling if group.scores[0] is None else group.scores[0],),
            bits=(group.costs[0] * UNQUANTIZED_BITS / group.costs[1],),
            weights=int(group.costs[1]),
            left_out=frozenset({0} if group.keeps_16_bits else ()),
            active_weights=group.active_weights,
        )
        for group in groups
    ]


def _total(scores: Sequence[float | None]) -> float | None:
    total = sum(math.inf if score is None else score for score in scores)
    return total if math.isfinite(total) else None
