"""The scheme rule ``max_kl``: the fewest bits whose measured damage stays within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from pytest_autoquant.allocation.frontier_search import (
    MOST_MEASUREMENTS,
    Search,
    Step,
    search_frontier,
)
from pytest_autoquant.allocation.scheme import Allocation
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.export.apply_scheme import GroupFormat
from pytest_autoquant.export.scheme_groups import Choice
from pytest_autoquant.manifests.records.scheme_manifest import (
    MeasuredDamage,
    SearchRecord,
    SearchStep,
)
from pytest_autoquant.scoring.progress import Progress


def choose_by_measurement(
    choice: Choice,
    limit: float,
    measure: Callable[[Sequence[GroupFormat]], MeasuredDamage],
    progress: Progress,
) -> tuple[Choice, SearchRecord]:
    """Replace a choice by the fewest bits within a limit, measured along the exact frontier.

    Args:
        limit: the largest measured KL divergence that passes, in nats per token.
        measure: returns the damage of formats, with the model restored afterwards.

    Raises:
        MeasurementError: no measured selection passes.
    """
    measured = count()

    def kl(allocation: Allocation) -> float:
        progress("search", next(measured), MOST_MEASUREMENTS)
        return measure(replace(choice, allocation=allocation).formats).kl

    search = search_frontier(choice.groups, limit, kl)
    if search.found is None:
        raise _none_passes(choice, limit, search)
    record = SearchRecord(
        limit=limit,
        steps=tuple(map(_record, search.steps)),
        num_selections=search.num_selections,
        num_unmeasured=search.num_unmeasured,
    )
    return replace(choice, allocation=search.found), record


def _record(step: Step) -> SearchStep:
    return SearchStep(
        effective_bits=step.allocation.effective_bits,
        score=step.allocation.score,
        kl=step.kl if math.isfinite(step.kl) else None,
        passed=step.passed,
    )


def _none_passes(choice: Choice, limit: float, search: Search) -> MeasurementError:
    least = search.closest
    return MeasurementError(
        f"scheme {choice.case.scheme.name}: only the unquantized model stays within a KL "
        f"divergence of {limit:.6g} nats per token; of {len(search.steps)} measured selections "
        f"the least has {least.kl:.6g}, at {least.allocation.effective_bits:.6g} bits per weight; "
        "give a larger max_kl, or candidates with more bits"
    )
