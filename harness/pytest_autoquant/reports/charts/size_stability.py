"""Size stability: how alike two calibration sizes rank the layer groups, and on which captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from pytest_autoquant.calibration.sizes import size_order
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.ranks import spearman
from pytest_autoquant.reports.markdown.elements import correlation
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.text import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilityPoint:
    """Rank correlation of one pair and granularity between two sizes.

    ``captions`` says which of the scored captions both sizes have.
    """

    case: str
    model: str
    method: str
    pair: str
    granularity: str
    sizes: str
    captions: str
    spearman: float
    detail: str


def stability(results: SessionResults) -> Iterator[StabilityPoint]:
    """Yield the Spearman correlation of every two sizes of a pair and granularity.

    Sizes that hold the same captions are one measurement, which says nothing of stability.
    """
    families: dict[tuple[str, ...], dict[str, CaseResult]] = {}
    for case in results.cases.values():
        if case.status == "measured":
            key = (case.model, case.method, case.pair, case.granularity)
            families.setdefault(key, {})[case.size] = case
    for (model, method, pair, granularity), by_size in families.items():
        for small, large in combinations(sorted(by_size, key=size_order), 2):
            if _hold_the_same_captions(by_size[small], by_size[large]):
                continue
            found = _correlation(by_size[small], by_size[large])
            if found is not None:
                captions = _captions(by_size[small], by_size[large])
                yield StabilityPoint(
                    case=by_size[large].case_id,
                    model=model,
                    method=method,
                    pair=pair,
                    granularity=granularity,
                    sizes=f"{small} and {large}",
                    captions=captions,
                    spearman=found,
                    detail=f"{pair}, {granularity}: {correlation(found)} between {small} and "
                    f"{large}, {captions}",
                )


def _hold_the_same_captions(first: CaseResult, second: CaseResult) -> bool:
    one, other = first.fingerprint, second.fingerprint
    return one is not None and other is not None and one.captions == other.captions


def _captions(first: CaseResult, second: CaseResult) -> str:
    """Return which of the scored captions both sizes have."""
    one, other = first.scored, second.scored
    common = one.in_common(other)
    if common is None:
        return "it is unknown which captions both scored"
    if common == one.count == other.count:
        return f"the same {counted(common, 'caption')} scored"
    if common == 0:
        return f"no scored caption in common ({one.count} and {other.count})"
    return f"{counted(common, 'scored caption')} in common ({one.count} and {other.count})"


def _correlation(before: CaseResult, after: CaseResult) -> float | None:
    known = {group.name: group.score for group in before.groups}
    pairs = [(known[group.name], group.score) for group in after.groups if group.name in known]
    return spearman(pairs) if len(pairs) > 1 else None
