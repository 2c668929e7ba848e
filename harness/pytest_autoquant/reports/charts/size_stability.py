"""Size stability: whether fewer captions rank the layer groups in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from pytest_autoquant.calibration.sizes import size_order
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.regression.comparison import spearman
from pytest_autoquant.reports.session_results import SessionResults


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilityPoint:
    """Rank correlation of one pair and granularity between two sizes."""

    case: str
    model: str
    method: str
    pair: str
    granularity: str
    sizes: str
    spearman: float
    detail: str


def stability(results: SessionResults) -> Iterator[StabilityPoint]:
    """Yield the Spearman correlation of every two sizes of a pair and granularity.

    Sizes that hold the same captions, as those of a short file do, say nothing of stability.
    """
    families: dict[tuple[str, ...], dict[str, CaseResult]] = {}
    for case in results.cases.values():
        if case.status == "measured":
            key = (case.model, case.method, case.pair, case.granularity)
            families.setdefault(key, {})[case.size] = case
    for (model, method, pair, granularity), by_size in families.items():
        for small, large in combinations(sorted(by_size, key=size_order), 2):
            found = _correlation(by_size[small], by_size[large])
            if found is not None:
                yield StabilityPoint(
                    case=by_size[large].case_id,
                    model=model,
                    method=method,
                    pair=pair,
                    granularity=granularity,
                    sizes=f"{small} and {large}",
                    spearman=round(found, 4),
                    detail=f"{pair}, {granularity}: {found:.4f} between {small} and {large}",
                )


def _correlation(before: CaseResult, after: CaseResult) -> float | None:
    if _holds_same_captions(before, after):
        return None
    known = {group.name: group.score for group in before.groups}
    pairs = [(known[group.name], group.score) for group in after.groups if group.name in known]
    return spearman(pairs) if len(pairs) > 1 else None


def _holds_same_captions(before: CaseResult, after: CaseResult) -> bool:
    first, second = before.fingerprint, after.fingerprint
    return first is not None and second is not None and first.captions == second.captions
