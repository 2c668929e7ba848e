"""The session summary: ``summary.json`` at the report root.

It lists every case of the folder, and is the only record of what left no manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pytest_autoquant.files import read_bytes
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.manifests.records.json_record import (
    SCHEMA_VERSION,
    STRICT,
    load_record,
)
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.records.sensitivity_manifest import CaseStatus
from pytest_autoquant.text import well_formed

SUMMARY_JSON = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCounts:
    """How many cases ended in each way; ``gated`` counts cases that the regression gate failed."""

    __pydantic_config__ = STRICT
    measured: int = 0
    alias: int = 0
    failed: int = 0
    skipped: int = 0
    structure: int = 0
    kept: int = 0
    gated: int = 0
    lost: int = 0
    schemes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryCase:
    """One case that has a manifest.

    Attributes:
        effective_bits: stored per weight under the case's format, scales included.
        active_bits: likewise per weight that a token is multiplied with, and
            ``selection_active_bits`` under the budget; None where those are all, and if unknown.
        total_score: of quantizing every group, per scored token; None if it is not finite.
        top_group: the most sensitive group; empty if there is no group.
        selected_groups: groups that the bit budget keeps quantized, out of ``num_groups``.
        selection_bits: bits per weight that the selection under the budget stores.
        manifest: path of the manifest below the report root, with ``/``.
        weights: of the model, ``checkpoint`` or ``random``; None if unknown, as the next two.
        measured_at: time in UTC, ISO 8601.
        seconds: what measuring the case took.
        whole_model_kl: measured with every group quantized, in nats per token; None if it is not
            known.
    """

    __pydantic_config__ = STRICT
    case_id: str
    pair: str
    granularity: str
    size: str
    status: CaseStatus
    alias_of: str | None
    experimental: bool
    problems: tuple[str, ...]
    effective_bits: float | None
    total_score: float | None
    top_group: str
    selected_groups: int
    manifest: str
    num_groups: int
    selection_bits: float | None
    is_satisfied: bool | None
    weights: str | None = None
    measured_at: str | None = None
    seconds: float | None = None
    whole_model_kl: float | None = None
    active_bits: float | None = None
    selection_active_bits: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShare:
    """A group's mean share of a measured case's total score, over a model's cases by a method.

    ``model`` is None in summaries from before rankings were by model, ``method`` likewise.
    """

    __pydantic_config__ = STRICT
    group: str
    mean_share: float
    model: str | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTiming:
    """Where the time of one process of a run went.

    Attributes:
        process: ``main`` measures and writes; under pytest-xdist ``controller`` and each worker.
        seconds: from when the process found out that the run is ours until the reports were
            written; of a worker until its last test ended.
        phases: seconds by phase, which add up to ``seconds``. A phase inside another is not part
            of it.
    """

    __pydantic_config__ = STRICT
    process: str
    seconds: float
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRun:
    """What the last run into a report folder did.

    Attributes:
        command: pytest's command line; None if unknown.
        shard: ``I/N`` if only a part of the cases ran.
        counts: cases of this run only, by outcome.
        cases: ids of the cases and schemes that sent an outcome or were lost, sorted.
        structure: quant pair and granularity of every structure case, sorted.
        is_finished: False from the first case until the summary at the end is written.
        started: time in UTC, ISO 8601; None if unknown.
        seconds: what the run took, None if it is not finished or unknown.
        timing: by process, where the time went; empty if it is not finished or unknown.
    """

    __pydantic_config__ = STRICT
    command: str | None = None
    shard: str | None = None
    counts: OutcomeCounts = field(default_factory=OutcomeCounts)
    cases: tuple[str, ...] = ()
    structure: tuple[tuple[str, str], ...] = ()
    is_finished: bool = True
    started: str | None = None
    seconds: float | None = None
    timing: tuple[ProcessTiming, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSummary:
    """Everything in a report folder, and what its last run did.

    Attributes:
        last_run: None in summaries from before it was recorded.
        shard: ``I/N`` if only a part of the cases ran.
        command: pytest's command line; None if unknown.
        gated: by case id, why the regression gate failed the case.
        reruns: by case id, why a resumed run measured the case again.
        kept: cases that a resumed run did not measure again.
        lost: cases that were to run and sent no outcome.
        left_out: files that could not be read, and why.
        write_errors: files that could not be written, and why.
    """

    __pydantic_config__ = STRICT
    schema_version: int = SCHEMA_VERSION
    counts: OutcomeCounts = field(default_factory=OutcomeCounts)
    shard: str | None = None
    command: str | None = None
    last_run: LastRun | None = None
    cases: tuple[SummaryCase, ...]
    skipped: tuple[SkippedCase, ...]
    errors: tuple[FailedCase, ...]
    gated: Mapping[str, str] = field(default_factory=dict)
    reruns: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    structure: tuple[StructureCheck, ...]
    most_sensitive_groups: tuple[GroupShare, ...] = ()
    left_out: tuple[str, ...] = ()
    write_errors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the shard's form; pydantic reports the ValueError of a malformed one."""
        if self.shard is not None:
            Shard.parse(self.shard)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The cases that have a manifest."""
        return tuple(case.case_id for case in self.cases)

    @property
    def part(self) -> Shard | None:
        """The shard that ran; None if all cases ran."""
        return None if self.shard is None else Shard.parse(self.shard)


def dump_summary(summary: SessionSummary) -> str:
    """Return the summary as indented JSON with a final newline."""
    text = json.dumps(asdict(summary), indent=2, allow_nan=False, ensure_ascii=False)
    return well_formed(text) + "\n"


def read_summary(path: Path) -> SessionSummary:
    """Read a ``summary.json``.

    Raises:
        RecordError: the file cannot be read, is not a summary, or a newer version wrote it.
    """
    return load_record(SessionSummary, read_bytes(path), source=str(path), name="session summary")
