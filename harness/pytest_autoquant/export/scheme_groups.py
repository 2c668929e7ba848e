"""The layer groups of a scheme: scored, allocated, and as the scheme manifest records them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_autoquant.allocation.knapsack import select_formats_by_budget
from pytest_autoquant.allocation.scheme import Allocation, allocate, check_reachable
from pytest_autoquant.allocation.scored_group import Cost, ScoredGroup
from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import MeasurementError, UsageError
from pytest_autoquant.export.apply_scheme import GroupFormat
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS, EffectiveConfig
from pytest_autoquant.grid.case import SchemeCase
from pytest_autoquant.manifests.records.scheme_manifest import (
    AllocationRecord,
    FrontierPoint,
    GroupDecision,
)
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.scoring.engine import GroupScore, Measurement, silent_groups
from pytest_autoquant.scoring.manifest.build_manifest import group_size, per_token
from pytest_autoquant.scoring.signal import Signal
from pytest_autoquant.text import first_few

#: By linear, why it cannot be exported in a candidate's format.
Obstacles = Mapping[str, str]

#: Number of points of the frontier, evenly spaced from the smallest choice to 16 bits.
NUM_BUDGETS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a scheme chose for every layer group.

    Attributes:
        case: the scheme, with the candidates that were considered.
        left_out: reason by candidate that was not considered.
        configs: effective config of each candidate, ``obstacles`` the linears that cannot take it.
        modules: linears of each group.
        groups: scores and sizes of each group.
        notes: which groups stay in 16 bits whatever they score, and why.
        cost: which weights a budget counts.
    """

    case: SchemeCase
    left_out: Mapping[str, str]
    configs: tuple[EffectiveConfig, ...]
    obstacles: tuple[Obstacles, ...]
    modules: tuple[tuple[str, ...], ...]
    groups: tuple[ScoredGroup, ...]
    allocation: Allocation
    frontier: tuple[FrontierPoint, ...]
    notes: tuple[str, ...] = ()
    cost: Cost = "stored"

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
                active_weights=group.active_weights,
                format=None if chosen is None else names[chosen],
                scores=dict(zip(names, group.scores, strict=True)),
                bits=UNQUANTIZED_BITS if chosen is None else group.bits[chosen],
                left_out={
                    names[i]: _why_left_out(modules, self.obstacles[i])
                    for i in sorted(group.left_out)
                },
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
            active_bits=self.allocation.active_bits,
            fraction_of_groups=self.allocation.fraction_of_groups,
            fraction_of_weights=self.allocation.fraction_of_weights,
        )


def choose(
    case: SchemeCase,
    left_out: Mapping[str, str],
    configs: Sequence[EffectiveConfig],
    obstacles: Sequence[Obstacles],
    measurements: Sequence[Measurement],
    data: CalibrationData,
    linears: Mapping[str, Linear],
    cost: Cost = "stored",
) -> Choice:
    """Solve a scheme for the scores of its candidates.

    Args:
        configs: effective config of each candidate; ``obstacles`` the linears that cannot take it,
            ``measurements`` its scores.
        linears: the model's linears by name.
        cost: which weights a budget counts.

    Raises:
        MeasurementError: a score is not finite, or zero because nothing passed through a group.
        UsageError: the budget cannot be reached.
    """
    _check_signal(case, measurements)
    signals = [measurement.signal for measurement in measurements]
    groups = tuple(
        _group(case, scores, configs, obstacles, data, linears, signals)
        for scores in zip(*(measurement.groups for measurement in measurements), strict=True)
    )
    return Choice(
        case=case,
        left_out=left_out,
        configs=tuple(configs),
        obstacles=tuple(obstacles),
        modules=tuple(group.modules for group in measurements[0].groups),
        groups=groups,
        allocation=allocate(case.scheme, groups, cost),
        cost=cost,
        frontier=_frontier(groups),
        notes=tuple(dict.fromkeys(note for signal in signals for note in signal.notes())),
    )


def unreachable(
    case: SchemeCase,
    configs: Sequence[EffectiveConfig],
    obstacles: Sequence[Obstacles],
    groups: Sequence[Sequence[str]],
    linears: Mapping[str, Linear],
    cost: Cost = "stored",
) -> str | None:
    """Return why a scheme's rule cannot be met, whatever the scores are, None if it can.

    Args:
        groups: linears of each group.
        cost: which weights a budget counts.
    """
    scores = (0.0,) * len(configs)
    sized = [_sized(modules, scores, configs, obstacles, linears) for modules in groups]
    try:
        check_reachable(case.scheme, sized, cost)
    except UsageError as error:
        return "; ".join((str(error), *named_obstacles(case, obstacles)))
    return None


def named_obstacles(case: SchemeCase, obstacles: Sequence[Obstacles]) -> tuple[str, ...]:
    """Return a sentence per candidate and reason, with the linears that cannot take it."""
    found: dict[tuple[str, str], list[str]] = {}
    for candidate, by_linear in zip(case.scheme.candidates, obstacles, strict=True):
        for linear, reason in by_linear.items():
            found.setdefault((candidate, reason), []).append(linear)
    return tuple(
        f"{candidate} cannot be exported where {reason}: {first_few(linears)}"
        for (candidate, reason), linears in found.items()
    )


def _why_left_out(modules: Sequence[str], obstacles: Obstacles) -> str:
    name = next((name for name in modules if name in obstacles), None)
    if name is None:
        return "weights or inputs of a member are all zero"
    return f"{obstacles[name]} of {name}"


def _sized(
    modules: Sequence[str],
    scores: tuple[float, ...],
    configs: Sequence[EffectiveConfig],
    obstacles: Sequence[Obstacles],
    linears: Mapping[str, Linear],
) -> ScoredGroup:
    """Return a group with what each candidate stores; all members must be able to take it."""
    sizes = [group_size(modules, linears, config) for config in configs]
    return ScoredGroup(
        name=modules[0],
        scores=scores,
        bits=tuple(size.bits for size in sizes),
        weights=sizes[0].weights,
        active_weights=sizes[0].active_weights,
        left_out=frozenset(
            i for i, each in enumerate(obstacles) if not each.keys().isdisjoint(modules)
        ),
    )


def _group(
    case: SchemeCase,
    scores: Sequence[GroupScore],
    configs: Sequence[EffectiveConfig],
    obstacles: Sequence[Obstacles],
    data: CalibrationData,
    linears: Mapping[str, Linear],
    signals: Sequence[Signal],
) -> ScoredGroup:
    """Combine what every candidate scored for one group."""
    modules = scores[0].modules
    per_candidate = tuple(per_token(score, data) for score in scores)
    if not all(map(math.isfinite, per_candidate)):
        raise MeasurementError(
            f"scheme {case.test_id}: the score of {modules[0]} is not finite; leave "
            "that candidate out"
        )
    sized = _sized(modules, per_candidate, configs, obstacles, linears)
    silent = {i for i, signal in enumerate(signals) if signal.keeps_16_bits(modules)}
    return replace(sized, left_out=sized.left_out | silent)


def _check_signal(case: SchemeCase, measurements: Sequence[Measurement]) -> None:
    silent = dict.fromkeys(name for found in measurements for name in silent_groups(found))
    if silent:
        raise MeasurementError(
            f"scheme {case.test_id}: nothing passed through {first_few([*silent])}, so their "
            "scores say nothing; give other captions with --aq-captions, or a model whose groups "
            "all run"
        )


def _frontier(groups: Sequence[ScoredGroup]) -> tuple[FrontierPoint, ...]:
    """Return the best prediction at each budget, leaving groups unquantized included."""
    choices = [group.with_unquantized() for group in groups]
    smallest = sum(choice.bits[choice.smallest] * choice.weights for choice in choices)
    least = smallest / sum(choice.weights for choice in choices)
    step = (UNQUANTIZED_BITS - least) / (NUM_BUDGETS - 1)
    budgets = [least + step * i for i in range(NUM_BUDGETS - 1)] + [UNQUANTIZED_BITS]
    return tuple(
        FrontierPoint(budget=budget, effective_bits=best.effective_bits, score=best.score)
        for budget, best in zip(budgets, select_formats_by_budget(choices, budgets), strict=True)
    )
