"""Whether the damages of a scheme's groups add up: each group alone beside all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.export.scheme_groups import Choice
from pytest_autoquant.manifests.records.scheme_manifest import InteractionRecord, MeasuredDamage
from pytest_autoquant.manifests.uncertainty import ratio_error
from pytest_autoquant.scoring.engine import Failure, GroupScore, Measurement
from pytest_autoquant.text import first_few


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsAlone:
    """The damage of each group of a choice with nothing else quantized.

    Attributes:
        kl: by group, in nats per token; None where it is not finite, not measured, or the group
            stays unquantized.
        by_caption: summed over the groups, in nats, in the order of ``CalibrationData.by_digest``.
        not_finite: names of the groups whose divergence is not finite.
        problem: why the groups could not be measured, None if they were.
    """

    kl: tuple[float | None, ...]
    by_caption: tuple[float, ...]
    not_finite: tuple[str, ...]
    problem: str | None

    def interaction(self, damage: MeasuredDamage) -> InteractionRecord:
        """Compare the groups' sum with the damage of the scheme as a whole."""
        if self.problem is not None:
            return InteractionRecord(not_measured=self.problem)
        if self.not_finite:
            names = first_few(self.not_finite)
            reason = f"the KL divergence is not finite with one group quantized alone: {names}"
            return InteractionRecord(not_measured=reason)
        total = math.fsum(each for each in self.kl if each is not None)
        if total == 0:
            reason = "no group is quantized, or none changes a prediction"
            return InteractionRecord(sum_kl=0.0, not_measured=reason)
        return InteractionRecord(
            sum_kl=total,
            ratio=damage.kl / total,
            standard_error=ratio_error(damage.by_caption, self.by_caption),
        )


def groups_alone(
    choice: Choice, outcomes: Mapping[str, Measurement | Failure], held_out: CalibrationData
) -> GroupsAlone:
    """Find the damage of each group in its chosen format.

    Args:
        outcomes: by config digest, every group measured alone on ``held_out``.
    """
    scores = list(_scores(choice, outcomes))
    measured = [score for score in scores if isinstance(score, GroupScore)]
    kl = tuple(
        score.score / held_out.scored_tokens if isinstance(score, GroupScore) else None
        for score in scores
    )
    return GroupsAlone(
        kl=tuple(None if each is None or not math.isfinite(each) else each for each in kl),
        by_caption=_summed([score.per_caption or () for score in measured]),
        not_finite=tuple(s.modules[0] for s in measured if not math.isfinite(s.score)),
        problem=next((score.reason for score in scores if isinstance(score, Failure)), None),
    )


def _scores(
    choice: Choice, outcomes: Mapping[str, Measurement | Failure]
) -> Iterator[GroupScore | Failure | None]:
    """Yield what was measured of each group, None where it stays unquantized."""
    for modules, chosen in zip(choice.modules, choice.allocation.chosen, strict=True):
        outcome = None if chosen is None else outcomes[choice.configs[chosen].digest]
        if isinstance(outcome, Measurement):
            yield next(group for group in outcome.groups if group.modules == modules)
        else:
            yield outcome


def _summed(by_group: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(math.fsum, zip(*by_group, strict=True)))
