"""What a session found out, or what a report folder holds, in the form that reports need."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pytest_autoquant.grid.case import is_scheme_id
from pytest_autoquant.manifests.case_result import RANDOM, CaseResult
from pytest_autoquant.manifests.records.outcome_log import LoggedOutcome
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest
from pytest_autoquant.manifests.records.session_summary import (
    LastRun,
    OutcomeCounts,
    ProcessTiming,
)
from pytest_autoquant.redact import without_paths
from pytest_autoquant.reports.markdown.elements import LOST_MEANS, random_weights_caution

#: Quant pair and granularity of a structure case.
StructureKey = tuple[str, str]


@dataclass(slots=True)
class SessionResults:
    """Results by case, so that a repeated report replaces its first.

    A session fills one as outcomes arrive; ``folder.read_folder`` and ``folder.cover`` return one
    for everything in a report folder.

    Attributes:
        errors: the last attempt's error. A case can be in ``cases`` as well: measured before.
        gated: why the regression gate failed a case.
        reruns: why a resumed run measured a case again; ``kept`` are those it did not.
        selected_anew: the change for which the groups of a kept case were selected anew.
        lost: cases that the last run expected and that sent no outcome.
        written: cases whose manifest this session put on disk.
        left_out: files that could not be read, and why.
        command: what started the session.
        shard: ``I/N`` where the session ran a part of the cases only.
        started: when the session began; None if that is not known.
        timing: seconds by phase, by process; see ``ProcessTiming``.
        last_run: of a folder, what its last run did; None of a session, and if unknown.
        logged: of a folder, what its outcome log holds; None if the log cannot be read.
    """

    cases: dict[str, CaseResult] = field(default_factory=dict)
    skips: dict[str, SkippedCase] = field(default_factory=dict)
    errors: dict[str, FailedCase] = field(default_factory=dict)
    structures: dict[StructureKey, StructureCheck] = field(default_factory=dict)
    schemes: dict[str, SchemeManifest] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    reruns: dict[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    selected_anew: dict[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    written: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)
    command: str | None = None
    shard: str | None = None
    write_errors: list[str] = field(default_factory=list)
    started: datetime | None = None
    timing: dict[str, Mapping[str, float]] = field(default_factory=dict)
    last_run: LastRun | None = None
    logged: tuple[LoggedOutcome, ...] | None = ()

    def add(self, line: CaseResult | SkippedCase | FailedCase | StructureCheck) -> None:
        """Record a newer outcome of a case, or of a structure case.

        A measurement replaces everything. A skip never replaces a measurement. An error is kept
        beside an earlier measurement.
        """
        if isinstance(line, StructureCheck):
            self.structures[line.pair, line.granularity] = line
            return
        if isinstance(line, SkippedCase) and line.case_id in self.cases:
            return
        self.skips.pop(line.case_id, None)
        self.errors.pop(line.case_id, None)
        if isinstance(line, CaseResult):
            self.cases[line.case_id] = line
        elif isinstance(line, SkippedCase):
            self.skips[line.case_id] = line
        else:
            self.errors[line.case_id] = line

    def sort(self) -> None:
        """Order everything by id: summaries then do not depend on the order of arrival."""
        self.cases = dict(sorted(self.cases.items()))
        self.skips = dict(sorted(self.skips.items()))
        self.errors = dict(sorted(self.errors.items()))
        self.structures = dict(sorted(self.structures.items()))
        self.schemes = dict(sorted(self.schemes.items()))
        self.gated = dict(sorted(self.gated.items()))
        self.reruns = dict(sorted(self.reruns.items()))

    def public(self, root: Path) -> SessionResults:
        """Return a copy for publishing: file names relative to ``root``, other folders removed."""

        def shown(text: str) -> str:
            return without_paths(text.replace(f"{root}{os.sep}", ""))

        return replace(
            self,
            errors={i: replace(e, problem=shown(e.problem)) for i, e in self.errors.items()},
            skips={i: replace(s, reason=shown(s.reason)) for i, s in self.skips.items()},
            gated={i: shown(why) for i, why in self.gated.items()},
            left_out=[shown(reason) for reason in self.left_out],
            write_errors=[shown(error) for error in self.write_errors],
        )

    @property
    def is_empty(self) -> bool:
        """Whether no case of ours ran, was skipped or was checked."""
        found = (self.cases, self.schemes, self.skips, self.errors, self.structures)
        return not any((*found, self.lost, self.write_errors))

    @property
    def case_ids(self) -> set[str]:
        """Every case that sent an outcome."""
        return {*self.cases, *self.schemes, *self.skips, *self.errors}

    def by_status(self, status: str) -> list[CaseResult]:
        """Return the cases that ended as ``measured``, ``alias`` or ``failed``."""
        return [line for line in self.cases.values() if line.status == status]

    @property
    def unfinished_schemes(self) -> tuple[tuple[str, str, str], ...]:
        """Case id, status and reason of every scheme that was skipped, failed or got lost."""
        found = [(skip.case_id, skip.status, skip.reason) for skip in self.skips.values()]
        found += [(error.case_id, "failed", error.problem) for error in self.errors.values()]
        found += [(case_id, "lost", LOST_MEANS) for case_id in self.lost]
        return tuple(outcome for outcome in found if is_scheme_id(outcome[0]))

    @property
    def failures(self) -> list[FailedCase]:
        """Every case that failed, with a manifest or without, and what was wrong."""
        failed = [
            FailedCase(case_id=line.case_id, problem="; ".join(line.problems))
            for line in self.by_status("failed")
        ]
        return failed + list(self.errors.values())

    @property
    def counts(self) -> OutcomeCounts:
        """Number of cases by outcome. A case that failed after it was measured counts as both."""
        return OutcomeCounts(
            measured=len(self.by_status("measured")),
            alias=len(self.by_status("alias")),
            failed=len(self.failures),
            skipped=len(self.skips),
            structure=len(self.structures),
            kept=len(self.kept),
            gated=len(self.gated),
            lost=len(self.lost),
            schemes=len(self.schemes),
        )

    @property
    def is_from_one_run(self) -> bool:
        """Whether no outcome is known to be from a run before the last one."""
        last = self.last_run
        return last is None or (
            self.case_ids <= set(last.cases) and self.structures.keys() <= set(last.structure)
        )

    def skip_counts(self) -> list[tuple[str, str, int]]:
        """Return (status, reason, count), most frequent first."""
        counts = Counter((skip.status, skip.reason) for skip in self.skips.values())
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [(status, reason, count) for (status, reason), count in ordered]


def last_run_of(session: SessionResults) -> LastRun:
    """Return the record of a session that ends now, for the folder that it writes to."""
    started = session.started
    return LastRun(
        started=None if started is None else started.isoformat(timespec="seconds"),
        seconds=None if started is None else (datetime.now(UTC) - started).total_seconds(),
        command=session.command,
        shard=session.shard,
        counts=session.counts,
        cases=tuple(sorted({*session.case_ids, *session.lost})),
        structure=tuple(sorted(session.structures)),
        timing=tuple(
            ProcessTiming(process=process, seconds=math.fsum(phases.values()), phases=dict(phases))
            for process, phases in session.timing.items()
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The most sensitive groups of one model by one method.

    Attributes:
        groups: name and mean share of a measured case's total score, the largest first.
        is_aligned: whether the cases name groups in several ways; the names are then shortened.
    """

    model: str
    method: str
    groups: tuple[tuple[str, float], ...]
    is_aligned: bool


def titles(rankings: Sequence[Ranking]) -> tuple[str, ...]:
    """Return what tells several rankings apart: model, and method where there are several."""
    if len(rankings) < 2:
        return ("",) * len(rankings)
    has_methods = len({ranking.method for ranking in rankings}) > 1
    return tuple(
        f"{ranking.model}, {ranking.method}" if has_methods else ranking.model
        for ranking in rankings
    )


def most_sensitive_groups(cases: Iterable[CaseResult], most: int = 10) -> tuple[Ranking, ...]:
    """Return per model and method the groups with the largest mean share of a case's total score.

    Totals differ by orders of magnitude between formats; shares let every case count once. A
    group that a case did not search has no share of its total, so shares add up to at most 1.
    """
    ranked: dict[tuple[str, str], list[CaseResult]] = defaultdict(list)
    for case in cases:
        if case.status == "measured" and case.shares:
            ranked[case.model, case.method].append(case)
    return tuple(_ranking(*key, found, most) for key, found in sorted(ranked.items()))


def _ranking(model: str, method: str, cases: Sequence[CaseResult], most: int) -> Ranking:
    names: dict[str, dict[str, None]] = defaultdict(dict)
    totals: dict[str, float] = defaultdict(float)
    for case in cases:
        short = case.short_names
        for group, share in case.shares.items():
            names[short[group]][group] = None
            totals[short[group]] += share / len(cases)
    is_aligned = any(len(found) > 1 for found in names.values())
    finite = [(short, mean) for short, mean in totals.items() if math.isfinite(mean)]
    ranked = sorted(finite, key=lambda item: -item[1])[:most]
    return Ranking(
        model=model,
        method=method,
        groups=tuple(
            (short if is_aligned else next(iter(names[short])), mean) for short, mean in ranked
        ),
        is_aligned=is_aligned,
    )


def caution(results: SessionResults) -> str:
    """Return a sentence that names the models whose weights are random; empty if there is none."""
    found = {case.model for case in results.cases.values() if case.has_random_weights}
    found |= {
        scheme.model.name for scheme in results.schemes.values() if scheme.model.weights == RANDOM
    }
    return random_weights_caution(found)


def origin(results: SessionResults) -> list[tuple[str, tuple[str, ...]]]:
    """Return where the numbers come from: each label with its distinct values over all cases."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for case in results.cases.values():
        for label, value in case.origin.items():
            found[label][value] = None
    return [(label, tuple(values)) for label, values in found.items()]
