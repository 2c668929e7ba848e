"""The layer groups of a scheme: scored, allocated, and as the scheme manifest records them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.allocation.knapsack import select_formats_by_budget
from pytest_autoquant.allocation.scheme import Allocation, allocate
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.export.apply_scheme import GroupFormat
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS, EffectiveConfig
from pytest_autoquant.grid.case import SchemeCase
from pytest_autoquant.manifests.scheme_manifest import (
    AllocationRecord,
    FrontierPoint,
    GroupDecision,
)
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.scoring.build_manifest import group_size, per_token
from pytest_autoquant.scoring.engine import GroupScore, Measurement

#: Number of points of the frontier, evenly spaced from the smallest choice to 16 bits.
NUM_BUDGETS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a scheme chose for every layer group.

    Attributes:
        case: the scheme, with the candidates that were considered.
        left_out: reason by candidate that was not considered.
        configs: effective config of each candidate.
        modules: linears of each group.
        groups: scores and sizes of each group.
    """

    case: SchemeCase
    left_out: Mapping[str, str]
    configs: tuple[EffectiveConfig, ...]
    modules: tuple[tuple[str, ...], ...]
    groups: tuple[ScoredGroup, ...]
    allocation: Allocation
    frontier: tuple[FrontierPoint, ...]

    @property
    def formats(self) -> tuple[GroupFormat, ...]:
        """The groups that are quantized."""
        return tuple(
            GroupFormat(modules=modules, config=self.configs[chosen])
            for modules, chosen in zip(self.modules, self.allocation.chosen, strict=True)
            if chosen is not None
        )

    @property
    def decisions(self) -> tuple[GroupDecision, ...]:
        """Every group as the manifest records it."""
        names = self.case.scheme.candidates
        return tuple(
            GroupDecision(
                name=group.name,
                modules=modules,
                weights=group.weights,
                format=None if chosen is None else names[chosen],
                scores=dict(zip(names, group.scores, strict=True)),
                bits=UNQUANTIZED_BITS if chosen is None else group.bits[chosen],
            )
            for group, modules, chosen in zip(
                self.groups, self.modules, self.allocation.chosen, strict=True
            )
        )

    @property
    def allocation_record(self) -> AllocationRecord:
        """The allocation as the manifest records it: without the choice per group."""
        return AllocationRecord(
            score=self.allocation.score,
            effective_bits=self.allocation.effective_bits,
            fraction_of_groups=self.allocation.fraction_of_groups,
            fraction_of_weights=self.allocation.fraction_of_weights,
        )


def choose(
    case: SchemeCase,
    left_out: Mapping[str, str],
    configs: Sequence[EffectiveConfig],
    measurements: Sequence[Measurement],
    data: CalibrationData,
    linears: Mapping[str, Linear],
) -> Choice:
    """Solve a scheme for the scores of its candidates.

    Args:
        configs: effective config of each candidate; ``measurements`` its scores.
        linears: the model's linears by name.

    Raises:
        MeasurementError: a score is not finite.
        UsageError: the budget cannot be reached.
    """
    groups = tuple(
        _group(case, scores, configs, data, linears)
        for scores in zip(*(measurement.groups for measurement in measurements), strict=True)
    )
    return Choice(
        case=case,
        left_out=left_out,
        configs=tuple(configs),
        modules=tuple(group.modules for group in measurements[0].groups),
        groups=groups,
        allocation=allocate(case.scheme, groups),
        frontier=_frontier(groups),
    )


def _group(
    case: SchemeCase,
    scores: Sequence[GroupScore],
    configs: Sequence[EffectiveConfig],
    data: CalibrationData,
    linears: Mapping[str, Linear],
) -> ScoredGroup:
    """Combine what every candidate scored for one group."""
    modules = scores[0].modules
    per_candidate = tuple(per_token(score, data) for score in scores)
    if not all(map(math.isfinite, per_candidate)):
        raise MeasurementError(
            f"scheme {case.test_id}: the score of {modules[0]} is not finite; leave "
            "that candidate out"
        )
    sizes = [group_size(scores[0], linears, config) for config in configs]
    return ScoredGroup(
        name=modules[0],
        scores=per_candidate,
        bits=tuple(size.bits for size in sizes),
        weights=sizes[0].weights,
    )


def _frontier(groups: Sequence[ScoredGroup]) -> tuple[FrontierPoint, ...]:
    """Return the best prediction at each budget, leaving groups unquantized included."""
    choices = [group.with_unquantized() for group in groups]
    smallest = sum(min(choice.bits) * choice.weights for choice in choices)
    least = smallest / sum(choice.weights for choice in choices)
    step = (UNQUANTIZED_BITS - least) / (NUM_BUDGETS - 1)
    budgets = [least + step * i for i in range(NUM_BUDGETS - 1)] + [UNQUANTIZED_BITS]
    return tuple(
        FrontierPoint(budget=budget, effective_bits=best.effective_bits, score=best.score)
        for budget, best in zip(budgets, select_formats_by_budget(choices, budgets), strict=True)
    )
