"""What a session found out, in the compact form that summaries need."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseLine:
    """One finished case. ``shares`` is each group's part of the total score, by group."""

    case_id: str
    pair: str
    granularity: str
    size: str
    status: str
    alias_of: str | None
    experimental: bool
    effective_bits: float
    total_score: float | None
    selected_groups: int
    num_groups: int
    selection_bits: float
    is_satisfied: bool
    top_group: str
    problems: tuple[str, ...]
    manifest: str
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipLine:
    """A case that did not run."""

    case_id: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLine:
    """A case that a resumed run left as it was measured before."""

    case_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLine:
    """A case that raised instead of measuring, so that it has no manifest."""

    case_id: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureLine:
    """A structure case: status of a pair under an overlay."""

    pair: str
    granularity: str
    status: str
    reason: str
    format_name: str
    effective_bits: float
    digest: str


@dataclass(slots=True)
class Results:
    """Everything that arrived, keyed by case so that a repeated report replaces its first.

    Attributes:
        gated: why the regression gate failed a case.
        reruns: why a resumed run measured a case again; ``kept`` are those it did not.
        lost: cases that were to run and sent no outcome.
        written: cases whose manifest this session put on disk.
        shard: ``I/N`` where the session ran a part of the cases only.
    """

    cases: dict[str, CaseLine] = field(default_factory=dict)
    skips: dict[str, SkipLine] = field(default_factory=dict)
    errors: dict[str, ErrorLine] = field(default_factory=dict)
    structures: dict[tuple[str, str], StructureLine] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    reruns: dict[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    lost: tuple[str, ...] = ()
    written: set[str] = field(default_factory=set)
    shard: str | None = None
    write_errors: list[str] = field(default_factory=list)

    def add(self, line: CaseLine | SkipLine | ErrorLine) -> None:
        """Take a case in, in place of whatever was known of it."""
        for known in (self.cases, self.skips, self.errors):
            known.pop(line.case_id, None)
        if isinstance(line, CaseLine):
            self.cases[line.case_id] = line
        elif isinstance(line, SkipLine):
            self.skips[line.case_id] = line
        else:
            self.errors[line.case_id] = line

    def sort(self) -> None:
        """Order everything by id: summaries then do not depend on the order of arrival."""
        self.cases = dict(sorted(self.cases.items()))
        self.skips = dict(sorted(self.skips.items()))
        self.errors = dict(sorted(self.errors.items()))
        self.structures = dict(sorted(self.structures.items()))
        self.gated = dict(sorted(self.gated.items()))

    @property
    def is_empty(self) -> bool:
        """Whether no case of ours ran, was skipped or was checked."""
        found = (self.cases, self.skips, self.errors, self.structures, self.lost, self.write_errors)
        return not any(found)

    @property
    def case_ids(self) -> set[str]:
        """Every case that sent an outcome."""
        return {*self.cases, *self.skips, *self.errors}

    def by_status(self, status: str) -> list[CaseLine]:
        """Return the cases that ended as ``measured``, ``alias`` or ``failed``."""
        return [line for line in self.cases.values() if line.status == status]

    @property
    def failures(self) -> list[ErrorLine]:
        """Every case that failed, with a manifest or without, and what was wrong."""
        failed = [
            ErrorLine(case_id=line.case_id, problem="; ".join(line.problems))
            for line in self.by_status("failed")
        ]
        return failed + list(self.errors.values())

    def skip_counts(self) -> list[tuple[str, str, int]]:
        """Return (status, reason, count), most frequent first."""
        counts = Counter((skip.status, skip.reason) for skip in self.skips.values())
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [(status, reason, count) for (status, reason), count in ordered]


def case_line(manifest: Manifest, path: Path) -> CaseLine:
    """Reduce a manifest to what summaries show; ``path`` is its file below the report root."""
    state, groups = manifest.autoquant_state, manifest.layer_sensitivity
    total = state.total_score
    selected = {layer.group for layer in manifest.layers.values() if layer.selected}
    return CaseLine(
        case_id=manifest.case.case_id,
        pair=manifest.case.pair,
        granularity=manifest.case.granularity,
        size=manifest.case.size,
        status=manifest.case.status,
        alias_of=manifest.case.alias_of,
        experimental=manifest.case.experimental,
        effective_bits=manifest.quantization.effective_bits,
        total_score=total,
        selected_groups=len(selected),
        num_groups=len(groups),
        selection_bits=state.effective_bits,
        is_satisfied=state.is_satisfied,
        top_group=manifest.sensitivity_ranking[0].name if manifest.sensitivity_ranking else "",
        problems=manifest.case.problems,
        manifest=path.as_posix(),
        shares={name: (group.importance or 0.0) / total for name, group in groups.items()}
        if total
        else {},
    )


def most_sensitive_groups(cases: Iterable[CaseLine], most: int = 10) -> list[tuple[str, float]]:
    """Return the groups with the largest mean share of a measured case's total score.

    Totals differ by orders of magnitude between formats; shares let every case count once.
    """
    shares: dict[str, list[float]] = defaultdict(list)
    for line in cases:
        if line.status == "measured":
            for group, share in line.shares.items():
                shares[group].append(share)
    means = {group: sum(values) / len(values) for group, values in shares.items()}
    finite = [(group, mean) for group, mean in means.items() if math.isfinite(mean)]
    return sorted(finite, key=lambda item: -item[1])[:most]
