"""How many captions a model needs: what the error bars at each size say, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pytest_autoquant.calibration.sizes import size_order
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.ranks import TOP, spearman
from pytest_autoquant.reports.markdown.elements import correlation, percent
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.text import counted

#: Standard error of a score, as a part of it, that the sentence gives the captions for.
_WANTED_ERROR = 0.05

#: A group is surely among the ten most sensitive from this probability on.
_SURE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAtSize:
    """The noise of the cases that scored the same captions.

    Attributes:
        sizes: their sizes, smallest first.
        captions: number of scored captions.
        error: standard error by score, the median over groups and cases.
        sure: number of groups that are surely among the ten most sensitive, the median over cases;
            None with ten groups or fewer.
    """

    sizes: tuple[str, ...]
    captions: int
    error: float
    sure: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionNeed:
    """What error bars say of one model under one method.

    Attributes:
        at: by scored captions, fewest first.
        halves: rank correlation of two disjoint halves of the most captions, the median over cases;
            None with fewer than four captions.
    """

    model: str
    method: str
    at: tuple[ErrorAtSize, ...]
    halves: float | None

    @property
    def captions(self) -> int:
        """Scored captions that are needed: the error falls with the square root of their number."""
        most = self.at[-1]
        return max(2, math.ceil(most.captions * (most.error / _WANTED_ERROR) ** 2))

    @property
    def sentence(self) -> str:
        """The answer, with what it rests on."""
        errors = " and ".join(
            f"{percent(each.error)} of it at {' and '.join(each.sizes)} "
            f"({counted(each.captions, 'caption')} scored)"
            for each in self.at
        )
        parts = [f"the standard error of a group's score is, in the median, {errors}"]
        if all(each.sure is not None for each in self.at):
            sure = " and ".join(f"{each.sure:g}" for each in self.at)
            parts.append(f"{sure} groups are surely among the ten most sensitive")
        if self.halves is not None:
            half = counted(self.at[-1].captions // 2, "caption")
            parts.append(
                f"two halves of {half} without a common one rank the groups alike to "
                f"{correlation(self.halves)} (Spearman)"
            )
        parts.append(f"for an error of {_WANTED_ERROR:.0%}, score about {self.captions} captions")
        return f"{self.model}, {self.method}: {'; '.join(parts)}."


def caption_needs(results: SessionResults) -> Iterator[CaptionNeed]:
    """Yield the answer for every model and method with error bars."""
    found: dict[tuple[str, str], dict[tuple[str, ...], list[CaseResult]]] = {}
    for case in results.by_status("measured"):
        if _relative_errors(case):
            by_captions = found.setdefault((case.model, case.method), {})
            by_captions.setdefault(case.scored.digests, []).append(case)
    for (model, method), by_captions in found.items():
        yield _need(model, method, by_captions)


def _need(
    model: str, method: str, by_captions: Mapping[tuple[str, ...], Sequence[CaseResult]]
) -> CaptionNeed:
    ordered = sorted(by_captions.values(), key=lambda cases: len(cases[0].scored.digests))
    correlations = [found for case in ordered[-1] if (found := _halves(case)) is not None]
    return CaptionNeed(
        model=model,
        method=method,
        at=tuple(map(_at_size, ordered)),
        halves=median(correlations) if correlations else None,
    )


def _at_size(cases: Sequence[CaseResult]) -> ErrorAtSize:
    is_many = all(len(case.groups) > TOP for case in cases)
    return ErrorAtSize(
        sizes=tuple(sorted({case.size for case in cases}, key=size_order)),
        captions=len(cases[0].scored.digests),
        error=median(error for case in cases for error in _relative_errors(case)),
        sure=median(map(_num_sure, cases)) if is_many else None,
    )


def _relative_errors(case: CaseResult) -> list[float]:
    return [
        group.error.standard_error / group.score
        for group in case.groups
        if group.error is not None and group.score
    ]


def _num_sure(case: CaseResult) -> int:
    known = [group.error for group in case.groups if group.error is not None]
    return sum(error.top_ten_probability >= _SURE for error in known)


def _halves(case: CaseResult) -> float | None:
    """Return the rank correlation of two disjoint halves of a case's captions.

    Digests order the captions, so every second one is a random half.
    """
    from pytest_autoquant.manifests.uncertainty import case_sample

    sample = case_sample(case.scored, case.groups)
    if sample is None or len(sample.captions) < 4:
        return None
    count = len(sample.captions)
    first, second = (
        sample.of_captions(range(start, count, 2)).per_token.tolist() for start in (0, 1)
    )
    return spearman(list(zip(first, second, strict=True)))
