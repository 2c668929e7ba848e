"""What became of a case that left no manifest: a skip, an error, a structure check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedCase:
    """A case that did not run; ``effective_bits`` of what it would have been, if that is known."""

    case_id: str
    status: str
    reason: str
    effective_bits: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCase:
    """A case that a resumed run left as it was measured before."""

    case_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """A case that raised instead of measuring, so that it has no manifest."""

    case_id: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureCheck:
    """A structure case: status of a pair under an overlay."""

    pair: str
    granularity: str
    status: str
    reason: str
    format_name: str
    effective_bits: float
    digest: str
