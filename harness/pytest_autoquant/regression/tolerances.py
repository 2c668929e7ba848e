"""How far a case may drift from its baseline, and which drifts exceed that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from pytest_autoquant.errors import UsageError
from pytest_autoquant.regression.comparison import Comparison
from pytest_autoquant.text import counted, digits_apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """Limits of the drift of a case; ``Comparison`` defines the measures.

    Attributes:
        spearman: lowest allowed rank correlation of the groups, at most 1.
        top_ten: lowest allowed share of the ten most sensitive groups that stay among the ten.
        total: largest allowed relative drift of the total score, in either direction.
        group: largest allowed relative drift of a group's score, in either direction.
        selected: largest allowed number of groups whose selection under the bit budget changes.
    """

    spearman: float
    top_ten: float
    total: float
    group: float
    selected: int

    def with_marker(self, kwargs: Mapping[str, float]) -> Tolerances:
        """Return these tolerances with those of an ``aq_tolerance`` marker in their place.

        Raises:
            UsageError: an unknown name, or a value that is not allowed.
        """
        check_marker((), kwargs)
        return replace(self, **kwargs)  # type: ignore[arg-type]


def check_marker(args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Check the arguments of an ``aq_tolerance`` marker, e.g. at collection.

    Raises:
        UsageError: a positional argument, an unknown name, or a value that is not allowed.
    """
    problems = [repr(value) for value in args]
    problems += [f"{name}={value!r}" for name, value in kwargs.items() if not _allows(name, value)]
    if problems:
        raise UsageError(
            f"marker aq_tolerance: {problems[0]} is not allowed; known names: "
            f"{', '.join(sorted(_names()))}; each value must be a finite number of at least 0, and "
            "an integer for selected"
        )


def find_drifts(comparison: Comparison, tolerances: Tolerances) -> tuple[str, ...]:
    """Return every exceeded tolerance, with its value, its limit and the option that widens it."""
    return (
        *_group_changes(comparison),
        *_order_drifts(comparison, tolerances),
        *_score_drifts(comparison, tolerances),
        *_selection_drifts(comparison, tolerances),
    )


def _names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Tolerances))


def _allows(name: str, value: object) -> bool:
    if name not in _names() or isinstance(value, bool):
        return False
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return False
    return name != "selected" or value == int(value)  # a number that went through JSON is a float


def _group_changes(comparison: Comparison) -> Iterator[str]:
    for kind, names in (("new", comparison.new), ("vanished", comparison.vanished)):
        if names:
            yield f"{counted(len(names), 'group')} {kind}, such as {names[0]}"
    if comparison.aligned:
        before, after = comparison.aligned[0]
        renamed = counted(len(comparison.aligned), "group")
        yield f"{renamed} named otherwise, such as {before}, now {after}"


def _order_drifts(comparison: Comparison, tolerances: Tolerances) -> Iterator[str]:
    if comparison.spearman < tolerances.spearman:
        digits = digits_apart(comparison.spearman, tolerances.spearman, 4, "f")
        yield (
            f"rank correlation of the groups {comparison.spearman:.{digits}f}, at least "
            f"{tolerances.spearman:.15g} required (--aq-tol-spearman)"
        )
    if comparison.top_ten < tolerances.top_ten:
        digits = digits_apart(comparison.top_ten, tolerances.top_ten, 0, "%")
        yield (
            f"{comparison.top_ten:.{digits}%} of the ten most sensitive groups kept, at least "
            f"{tolerances.top_ten:.{digits}%} required (--aq-tol-top-ten)"
        )


def _score_drifts(comparison: Comparison, tolerances: Tolerances) -> Iterator[str]:
    if abs(comparison.total_drift) > tolerances.total:
        digits = digits_apart(abs(comparison.total_drift), tolerances.total, 2, "%")
        yield (
            f"total score {comparison.total_drift:+.{digits}%}, {tolerances.total:.{digits}%} "
            "allowed (--aq-tol-total)"
        )
    drifted = [group for group in comparison.groups if abs(group.drift) > tolerances.group]
    if drifted:
        digits = digits_apart(comparison.largest_drift, tolerances.group, 2, "%")
        yield (
            f"{len(drifted)} of {len(comparison.groups)} groups drifted by more than "
            f"{tolerances.group:.{digits}%}, up to {comparison.largest_drift:.{digits}%} "
            "(--aq-tol-group)"
        )


def _selection_drifts(comparison: Comparison, tolerances: Tolerances) -> Iterator[str]:
    count = len(comparison.selection_changes)
    if count > tolerances.selected:
        yield (
            f"{counted(count, 'group')} selected otherwise under the bit budget, "
            f"{tolerances.selected} allowed (--aq-tol-selected)"
        )
