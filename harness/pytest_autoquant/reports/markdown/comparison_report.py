"""The comparison of two runs as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_autoquant.manifests.case_result import UNKNOWN
from pytest_autoquant.manifests.fingerprint import Difference
from pytest_autoquant.regression.comparison import Comparison
from pytest_autoquant.reports.markdown.elements import (
    code,
    correlation,
    drift_shown,
    numbers_apart,
    random_weights_caution,
    table,
    text,
)
from pytest_autoquant.reports.run_comparison import RunComparison
from pytest_autoquant.text import counted

#: Groups shown when a single case is compared, most drifted first.
_MOST_GROUPS = 10

#: Cases of one run only that are listed by name; more are counted.
_MOST_NAMES = 20

_HEADERS = (
    "case",
    "total score",
    "rank corr.",
    "top ten kept",
    "largest group drift",
    "beyond noise",
    "selected",
)


def compare_markdown(comparison: RunComparison) -> str:
    """Return the comparison as Markdown, most drifted case first."""
    has_kl = any(found.kl_drift is not None for found in comparison.cases.values())
    headers = (*_HEADERS[:2], *(("measured KL",) if has_kl else ()), *_HEADERS[2:])
    ordered = sorted(comparison.cases.items(), key=lambda item: -item[1].largest_drift)
    parts = [
        f"{counted(len(ordered), 'case')} in both runs, "
        f"{len(comparison.only_before)} only in the first, "
        f"{len(comparison.only_after)} only in the second.",
        table(
            headers,
            [_row(case_id, found, has_kl) for case_id, found in ordered],
            right=" rrrrrr" + "r" * has_kl,
        ),
    ]
    if len(ordered) == 1:
        parts.append(_groups(ordered[0][1]))
    cases = (*comparison.before.values(), *comparison.after.values())
    parts += filter(
        None, [text(random_weights_caution({c.model for c in cases if c.has_random_weights}))]
    )
    parts += _remarks([found for _, found in ordered])
    parts += _names("Only in the first", comparison.only_before)
    parts += _names("Only in the second", comparison.only_after)
    if comparison.left_out:
        reasons = "\n".join(f"- {text(reason)}" for reason in comparison.left_out)
        parts += [f"{counted(len(comparison.left_out), 'file')} left out:", reasons]
    return "\n\n".join(parts) + "\n"


def _row(case_id: str, found: Comparison, has_kl: bool) -> tuple[str, ...]:
    return (
        code(case_id),
        score_drift_shown(found, found.total_drift),
        *((kl_drift_shown(found),) if has_kl else ()),
        correlation(found.spearman),
        f"{found.top_ten:.0%}",
        score_drift_shown(found, found.largest_drift).removeprefix("+"),
        _noise(found),
        f"{len(found.selection_changes)} changed",
    )


def score_drift_shown(found: Comparison, drift: float) -> str:
    """Return the drift of a score; ``n/a`` where the two have different units."""
    return drift_shown(drift) if found.has_one_unit else "n/a"


def kl_drift_shown(found: Comparison) -> str:
    """Return the drift of the measured KL divergence, and whether it is beyond noise."""
    if found.kl_drift is None:
        return UNKNOWN
    beyond = ", beyond noise" if found.is_kl_beyond_noise else ""
    return f"{drift_shown(found.kl_drift)}{beyond}"


def _noise(found: Comparison) -> str:
    """Return what differs by more than the choice of captions explains."""
    if found.num_beyond_noise is None:
        return UNKNOWN
    total = "total and " if found.is_total_beyond_noise else ""
    return f"{total}{found.num_beyond_noise} of {counted(len(found.groups), 'group')}"


def _remarks(comparisons: Sequence[Comparison]) -> Iterator[str]:
    if any(not found.is_comparable for found in comparisons):
        yield (
            "A manifest from before the harness takes part: compare its ranks, not its scores; "
            "what it was measured on is unknown."
        )
    for first, second in sorted({each.methods for each in comparisons if not each.has_one_unit}):
        yield (
            f"Scored by {code(first)}, then by {code(second)}: scores of two methods have other "
            "units, so their ranks compare and no drift is shown."
        )
    budgets = sorted({each.budgets for each in comparisons if None not in each.budgets})
    for before, after in budgets:
        if before != after:
            yield (
                f"Groups are selected under {before:g} bits per weight in the first run and "
                f"{after:g} in the second: give both runs one --aq-effective-bits to compare "
                "selections; scores do not depend on it."
            )
    aligned = [pair for found in comparisons for pair in found.aligned]
    if aligned:
        old, new = map(code, aligned[0])
        yield (
            f"The runs name {counted(len(set(aligned)), 'group')} otherwise; they are matched by "
            f"the end of their names, such as {old} and {new}."
        )
    if any(found.num_beyond_noise is not None for found in comparisons):
        yield (
            "Beyond noise: the 95% interval of the difference over captions, paired by caption, "
            "excludes zero. Of groups that do not differ, 5% are beyond it by chance."
        )
    fields = sorted(
        {
            _in_words(each)
            for found in comparisons
            for each in found.differing
            if each.field != "method"
        }
    )
    if fields:
        yield "Measured on something else: " + "; ".join(fields)


def _in_words(difference: Difference) -> str:
    """Return a difference without characters that Markdown would need escaped."""
    field = "measurement version" if difference.field == "harness" else difference.field
    name = field.replace("_", " ")
    before, after = map(code, difference.shown)
    return f"{name} {before}, then {after}"


def _names(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return [f"{title}: {', '.join(map(code, names[:_MOST_NAMES]))}{more}"]


def _groups(found: Comparison) -> str:
    rows = [
        (
            code(group.name),
            *numbers_apart(group.before, group.after),
            score_drift_shown(found, group.drift),
            f"{group.rank_before} to {group.rank_after}",
            {True: "yes", False: "no", None: UNKNOWN}[group.is_beyond_noise],
        )
        for group in found.worst(_MOST_GROUPS)
    ]
    headers = ("group", "score before", "score after", "drift", "rank", "beyond noise")
    return table(headers, rows, right=" rrrr")
