"""Does the sum hold? Whole configurations by the sum of their scores and by what was measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.reports.markdown.elements import captions_used, numbers_apart, whole_kl_shown
from pytest_autoquant.text import counted

if TYPE_CHECKING:
    from pytest_autoquant.manifests.uncertainty import CaptionSample


def whole_sentence(case: CaseResult) -> str:
    """Return what a case's whole model was measured to lose, or why it was not measured.

    Empty for a manifest from before it was recorded.
    """
    whole = case.whole
    if whole is None:
        reason = case.whole_not_measured
        return "" if reason is None else f"Whole model not measured: {reason}."
    return (
        f"Measured KL with every group quantized: {whole_kl_shown(case)} nats per token, on "
        f"{captions_used(case, whole.captions)} ({whole.tokens} tokens).{_ratio_sentence(case)}"
    )


def _ratio_sentence(case: CaseResult) -> str:
    """Say what the sum of the scores is to the measured divergence; the unit decides the words."""
    whole = case.whole
    if whole is None:
        return ""
    error = whole.ratio_standard_error
    noise = "" if error is None else f" ± {error:.1g}"
    if whole.score_per_kl is not None:
        shown = f"{whole.score_per_kl:.3g}{noise}"
        return f" The sum of the groups' scores is {shown} times that; {_unit_of_ratio(case)}."
    if whole.interaction_ratio is not None:
        return (
            f" It is {whole.interaction_ratio:.3g}{noise} times the sum of the groups' "
            "divergences: 1 where damages add up, more where they reinforce each other, less where "
            "they cancel."
        )
    return ""


def _unit_of_ratio(case: CaseResult) -> str:
    if case.method == "fisher":
        return (
            "half of a score estimates the KL of its group, so the factor is 2 where the estimates "
            "hold and damages add up"
        )
    return (
        "a score has another unit, so the factor compares configurations and does not tell whether "
        "damages add up"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredOrder:
    """How the sum of the scores and the measured divergence order the cases of one view.

    Attributes:
        pairs: pairs of cases that both tell apart by more than their noise.
        apart: those that the two order otherwise.
        worst: of those the pair with the largest ratio of divergences: the case with the lower sum
            and the higher divergence, and the other one; None if there is none.
    """

    model: str
    method: str
    size: str
    pairs: int
    apart: int
    worst: tuple[CaseResult, CaseResult] | None

    @property
    def sentence(self) -> str:
        """Whether the two agree, and where they disagree most."""
        where = f"{self.model}, {self.size}, {self.method}"
        both = (
            f"{counted(self.pairs, 'pair')} of cases that both tell apart beyond their error bars"
        )
        if self.worst is None:
            every = "the" if self.pairs == 1 else "all"
            return f"{where}: the sum of the scores and the measured KL order alike {every} {both}."
        first, second = self.worst
        sums = numbers_apart(first.total_score, second.total_score)
        kl = numbers_apart(first.whole_kl, second.whole_kl)
        return (
            f"{where}: of {both}, the sum of the scores and the measured KL order {self.apart} "
            f"otherwise. The worst: {_named(first)} has a lower sum than {_named(second)} "
            f"({sums[0]} against {sums[1]}) and a higher KL ({kl[0]} against {kl[1]})."
        )


def measured_orders(cases: Iterable[CaseResult]) -> tuple[MeasuredOrder, ...]:
    """Return the order of every view with two cases whose whole model was measured."""
    views: dict[tuple[object, ...], list[CaseResult]] = defaultdict(list)
    for case in cases:
        if case.status == "measured" and case.whole is not None:
            # Error bars are compared caption by caption.
            key = (case.model, case.method, case.size, case.scored.digests, case.whole.captions)
            views[key].append(case)
    found = [_order(members) for _, members in sorted(views.items()) if len(members) > 1]
    return tuple(order for order in found if order is not None and order.pairs)


def _order(cases: Sequence[CaseResult]) -> MeasuredOrder | None:
    import numpy as np

    from pytest_autoquant.manifests.uncertainty import case_sample, certainly_below, whole_sample

    found = [
        (case, scores, kl)
        for case in cases
        if (scores := case_sample(case.scored, case.groups)) is not None
        if (kl := whole_sample(case.scored, case.whole)) is not None
    ]
    if len(found) < 2:
        return None
    by_sum = certainly_below(_together([scores.with_sum() for _, scores, _ in found]))
    by_kl = certainly_below(_together([kl for _, _, kl in found]))
    apart = by_sum & by_kl.T
    lower, higher = np.nonzero(apart)
    pairs = [(found[i][0], found[j][0]) for i, j in zip(lower, higher, strict=True)]
    case = found[0][0]
    return MeasuredOrder(
        model=case.model,
        method=case.method,
        size=case.size,
        pairs=int((by_sum & (by_kl | by_kl.T)).sum()),
        apart=len(pairs),
        worst=max(pairs, key=_factor, default=None),
    )


def _together(samples: Sequence[CaptionSample]) -> CaptionSample:
    """Return the last row of samples on the same captions as one sample."""
    return replace(samples[0], scores=[sample.scores[-1] for sample in samples])


def _named(case: CaseResult) -> str:
    return f"{case.pair} {case.granularity}"


def _factor(pair: tuple[CaseResult, CaseResult]) -> float:
    first, second = pair
    above, below = first.whole_kl or 0.0, second.whole_kl or 0.0
    return above / below if below else math.inf
