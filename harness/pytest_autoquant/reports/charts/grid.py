"""The grid of one model, method and size: the outcome of every pair under every granularity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_autoquant.calibration.sizes import size_order
from pytest_autoquant.grid.case import CaseId
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.reports.markdown.elements import LOST_MEANS, bits, number, whole_kl_shown
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.text import slug

GRID_FILES = "grid-*.svg"

#: Characters of a model's name that a picture's file name keeps; file systems allow 255 bytes.
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One model, method and size; each has a grid of its own."""

    model: str
    method: str
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """A pair under a granularity.

    Attributes:
        score: the total, per scored token; None where nothing was measured.
        label: two lines, drawn in the cell; three with a measured KL divergence.
        detail: one sentence, shown below the grid and read by screen readers.
        case: ``case_id`` of a case with a manifest, else empty.
    """

    row: int
    column: int
    pair: str
    granularity: str
    status: str
    score: float | None
    label: str
    detail: str
    case: str


def views(results: SessionResults) -> tuple[View, ...]:
    """Return every model, method and size that a case names; the smallest size first."""
    named = {view_of(name) for name in _names(results)}
    return tuple(sorted(named, key=lambda v: (v.model, v.method, size_order(v.size))))


def grid_file(view: View) -> str:
    """Return the file name of a grid's picture."""
    method = "" if view.method == "gradient" else f"-{slug(view.method)}"
    return f"grid-{slug(view.model)[:_LONGEST_NAME]}-{slug(view.size)}{method}.svg"


def view_of(case: CaseId | CaseResult) -> View:
    """Return the view that shows a case."""
    return View(model=case.model, method=case.method, size=case.size)


def grid_cells(results: SessionResults, view: View) -> tuple[GridCell, ...]:
    """Return one cell per pair and granularity that a case of the view names, row by row."""
    names = {
        (name.pair, name.granularity): name for name in _names(results) if view_of(name) == view
    }
    vocabulary = load_vocabulary()
    pairs = _ordered((pair for pair, _ in names), vocabulary.pairs)
    granularities = _ordered((name for _, name in names), vocabulary.granularities)
    return tuple(
        _cell(results, names[pair, granularity], row, column)
        for row, pair in enumerate(pairs)
        for column, granularity in enumerate(granularities)
        if (pair, granularity) in names
    )


def in_vocabulary_order(checks: Iterable[StructureCheck]) -> tuple[StructureCheck, ...]:
    """Order structure cases by pair and granularity as the built-in vocabulary has them."""
    checks, vocabulary = tuple(checks), load_vocabulary()
    pairs = _ordered((check.pair for check in checks), vocabulary.pairs)
    names = _ordered((check.granularity for check in checks), vocabulary.granularities)
    return tuple(sorted(checks, key=lambda c: (pairs.index(c.pair), names.index(c.granularity))))


def _ordered(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """Order names as the built-in vocabulary has them; others follow by name."""
    places = {name: place for place, name in enumerate(known)}
    return sorted(set(found), key=lambda name: (places.get(name, len(places)), name))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What a cell shows: ``label`` in the cell, ``sentence`` beside the grid."""

    status: str
    label: str
    sentence: str
    bits: float | None = None
    score: float | None = None
    case: str = ""


def _cell(results: SessionResults, name: CaseId, row: int, column: int) -> GridCell:
    found = _outcome(results, name.case_id)
    stored = "" if found.bits is None else f"{bits(found.bits)} bits"
    sentence = f"{name.pair}, {name.granularity}: {found.sentence}"
    if name.case_id in results.gated:
        sentence += "; stopped by the gate"
    return GridCell(
        row=row,
        column=column,
        pair=name.pair,
        granularity=name.granularity,
        status=found.status,
        score=found.score,
        label=f"{found.label}\n{stored}{', alias' if found.status == 'alias' else ''}",
        detail=f"{sentence}; {stored} per weight" if stored else sentence,
        case=found.case,
    )


def _outcome(results: SessionResults, case_id: str) -> _Outcome:
    error = results.errors.get(case_id)
    if case_id in results.cases:
        return _measured(results.cases[case_id], error)
    if error is not None:
        return _Outcome(status="failed", label="failed", sentence=f"failed: {error.problem}")
    if case_id in results.skips:
        return _skipped(results.skips[case_id])
    return _Outcome(status="lost", label="lost", sentence=f"lost: {LOST_MEANS}")


def _skipped(skip: SkippedCase) -> _Outcome:
    return _Outcome(
        status=skip.status,
        label=skip.status,
        sentence=f"skipped, {skip.status}: {skip.reason}",
        bits=skip.effective_bits,
    )


def _measured(case: CaseResult, error: FailedCase | None) -> _Outcome:
    if case.status == "failed":
        label, sentence = "failed", f"failed: {'; '.join(case.problems)}"
    else:
        label = number(case.total_score)
        what = "measured" if case.alias_of is None else f"alias of {case.alias_of}"
        sentence = f"{what}, total score {label} {case.unit}"
        if case.whole is not None:
            label += f"\nKL {case.whole.kl:.2g}"
            sentence += f", measured KL {whole_kl_shown(case)} nats per token"
    if error is not None:
        sentence += f"; then failed: {error.problem}"
    return _Outcome(
        status=case.status,
        label=label,
        sentence=sentence,
        bits=case.effective_bits,
        score=None if case.status == "failed" else case.total_score,
        case=case.case_id,
    )


def _names(results: SessionResults) -> Iterator[CaseId]:
    for case in results.cases.values():
        yield CaseId(
            case_id=case.case_id,
            model=case.model,
            pair=case.pair,
            granularity=case.granularity,
            size=case.size,
            method=case.method,
        )
    for case_id in (*results.skips, *results.errors, *results.lost):
        name = CaseId.parse(case_id)
        if name is not None:
            yield name
