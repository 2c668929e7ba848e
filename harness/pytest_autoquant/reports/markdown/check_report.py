"""Does the score hold? What the measured KL divergence of the groups says of their scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from pytest_autoquant.manifests.case_result import CaseResult, Group
from pytest_autoquant.manifests.ranks import TOP, places
from pytest_autoquant.manifests.records.score_check import GroupDivergence
from pytest_autoquant.reports.markdown.elements import (
    captions_used,
    code,
    correlation,
    number,
    table,
    with_error,
)
from pytest_autoquant.text import counted

CHECK_MEANS = (
    "Spearman is the rank correlation, over the layer groups, of the score with the KL divergence "
    "of quantizing each group alone, which is measured and not estimated; 1 is the same order."
)

#: Groups that a layer report lists as misranked.
_WORST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGroup:
    """A group with its measured divergence.

    Attributes:
        kl_rank: by divergence, 1 the largest.
    """

    group: Group
    divergence: GroupDivergence
    kl_rank: int

    @property
    def moved(self) -> int:
        """Ranks that the score places the group too low, negative where too high."""
        return self.group.rank - self.kl_rank


def checked_groups(case: CaseResult) -> tuple[CheckedGroup, ...]:
    """Return the groups of a checked case in model order; none if it was not checked."""
    known = {g.name: g.divergence for g in case.in_module_order if g.divergence is not None}
    ranks = places({name: divergence.kl for name, divergence in known.items()})
    return tuple(
        CheckedGroup(group=group, divergence=known[group.name], kl_rank=ranks[group.name])
        for group in case.in_module_order
        if group.name in known
    )


def worst_misranked(case: CaseResult) -> list[CheckedGroup]:
    """Return the groups whose ranks by score and by divergence differ most, the worst first."""
    moved = [group for group in checked_groups(case) if group.moved]
    return sorted(moved, key=lambda group: (-abs(group.moved), group.kl_rank))[:_WORST]


def check_sentence(case: CaseResult) -> str:
    """Return what the check of a case found, or why there was none; empty for ``kl_div``."""
    check = case.score_check
    if check is None:
        return "" if case.score_not_checked is None else f"Not checked: {case.score_not_checked}."
    top = min(TOP, len(case.groups))
    captions = captions_used(case, check.captions)
    return (
        f"Spearman {correlation(check.spearman)} between the score and the measured KL divergence "
        f"of {counted(len(case.groups), 'group')}; of the {top} with the largest divergence, "
        f"{check.top_ten} are among the {top} with the highest score. Measured on {captions} "
        f"({check.tokens} tokens), each group quantized alone."
    )


def check_section(case: CaseResult) -> list[str]:
    """Return the section of a layer report."""
    sentence = check_sentence(case)
    if not sentence:
        return []
    rows = [
        (
            code(each.group.name),
            each.group.rank,
            each.kl_rank,
            number(each.group.score),
            with_error(each.divergence.kl, each.divergence.standard_error),
        )
        for each in worst_misranked(case)
    ]
    headers = ("group", "rank by score", "rank by KL", "score", "KL (nats per token)")
    worst = ["Misranked most:", table(headers, rows, right=" rrrr")] if rows else []
    return ["## Does the score hold?", sentence, *worst]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRanks:
    """How a kind of layer is ranked over the cases of a model.

    Attributes:
        distance: mean difference of its groups' ranks by score and by divergence.
        moved: the same with its sign: positive where the score underrates them.
    """

    kind: str
    distance: float
    moved: float

    @property
    def shown(self) -> str:
        """The numbers with their direction."""
        side = "underrated" if self.moved > 0 else "overrated"
        return f"{self.kind} {self.distance:.1f} ({side} by {abs(self.moved):.1f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSummary:
    """What the checks of one model's cases by one method say together.

    Attributes:
        least: the case with the lowest correlation.
        kinds: of layers, the worst ranked first.
        pairs: quant pair and the median of its cases' correlations, the lowest first.
    """

    model: str
    method: str
    correlations: tuple[float, ...]
    least: CaseResult
    kinds: tuple[KindRanks, ...]
    pairs: tuple[tuple[str, float], ...]

    @property
    def headline(self) -> str:
        """The median and the least correlation."""
        of = f"{self.model}, {self.method}, {counted(len(self.correlations), 'case')}"
        return (
            f"{of}: Spearman of score and measured KL "
            f"{correlation(median(self.correlations))} in the median, at least "
            f"{correlation(min(self.correlations))} ({self.least.pair}, {self.least.granularity}, "
            f"{self.least.size})"
        )

    @property
    def sentence(self) -> str:
        """The headline, and what is misranked most."""
        kinds = ", ".join(kind.shown for kind in self.kinds)
        pairs = ", ".join(f"{pair} {correlation(value)}" for pair, value in self.pairs[:3])
        return (
            f"{self.headline}; lowest median by pair: {pairs}; mean difference of ranks by kind of "
            f"layer: {kinds}."
        )


def check_summaries(cases: Iterable[CaseResult]) -> tuple[CheckSummary, ...]:
    """Return a summary per model and method with a checked case; aliases are left out."""
    checked: dict[tuple[str, str], list[CaseResult]] = defaultdict(list)
    for case in cases:
        if case.status == "measured" and case.score_check is not None:
            checked[case.model, case.method].append(case)
    return tuple(_summary(*key, found) for key, found in sorted(checked.items()))


def _summary(model: str, method: str, cases: Sequence[CaseResult]) -> CheckSummary:
    found = [(case.score_check.spearman, case) for case in cases if case.score_check is not None]
    pairs: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, list[int]] = defaultdict(list)
    for value, case in found:
        pairs[case.pair].append(value)
        for each in checked_groups(case):
            kinds[each.group.projection].append(each.moved)
    return CheckSummary(
        model=model,
        method=method,
        correlations=tuple(value for value, _ in found),
        least=min(found, key=lambda each: each[0])[1],
        kinds=tuple(sorted(map(_kind_ranks, kinds.items()), key=lambda kind: -kind.distance)),
        pairs=tuple(
            sorted(((p, median(values)) for p, values in pairs.items()), key=lambda each: each[1])
        ),
    )


def _kind_ranks(item: tuple[str, list[int]]) -> KindRanks:
    kind, moved = item
    return KindRanks(kind=kind, distance=fmean(map(abs, moved)), moved=fmean(moved))
