"""Charts of schemes: measured damage against prediction, and the best prediction per budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest
from pytest_autoquant.reports.markdown.elements import bits, number


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemePoint:
    """A scheme in the plot of measured damage against prediction.

    Attributes:
        score: predicted, per scored token.
        kl: measured KL divergence in nats per token.
    """

    scheme: str
    score: float
    kl: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """The lowest predicted score of a set of candidates at a number of bits per weight."""

    candidates: str
    bits: float
    score: float
    detail: str


def scheme_points(schemes: Mapping[str, SchemeManifest]) -> tuple[SchemePoint, ...]:
    """Return the schemes that a log scale can show: both numbers above zero."""
    return tuple(
        SchemePoint(
            scheme=found.scheme.name,
            score=found.allocation.score,
            kl=found.measured.kl,
            detail=f"{found.scheme.name}: predicted score {number(found.allocation.score)} per "
            f"token, measured KL {number(found.measured.kl)} nats per token",
        )
        for found in schemes.values()
        if found.allocation.score > 0 and found.measured.kl > 0
    )


def budget_points(schemes: Mapping[str, SchemeManifest]) -> tuple[BudgetPoint, ...]:
    """Return the Pareto frontier of every set of candidates, once per model and size."""
    sets = {
        f"{', '.join(found.scheme.candidates)} ({found.model.name}, {found.dataset.size})": found
        for found in schemes.values()
    }
    return tuple(
        BudgetPoint(
            candidates=name,
            bits=point.effective_bits,
            score=point.score,
            detail=f"{name}: {number(point.score)} per token at {bits(point.effective_bits)} bits "
            "per weight",
        )
        for name, found in sets.items()
        for point in found.frontier
    )
