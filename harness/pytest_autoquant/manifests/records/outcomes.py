"""Outcomes of cases that leave no manifest: skipped, failed, kept, and structure checks."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_autoquant.manifests.records.json_record import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedCase:
    """A case that did not run.

    Attributes:
        status: why, as a support status such as ``needs-cuda``.
        reason: why, in words.
        effective_bits: bits per weight that the case would have stored; None if unknown.
    """

    __pydantic_config__ = STRICT
    case_id: str
    status: str
    reason: str
    effective_bits: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """A case that raised instead of measuring, so that it has no manifest."""

    __pydantic_config__ = STRICT
    case_id: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCase:
    """A case whose manifest from an earlier run is still valid, so that it was not measured."""

    __pydantic_config__ = STRICT
    case_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureCheck:
    """The result of a structure case: the support status of a pair under an overlay.

    Attributes:
        effective_bits: bits stored per weight, every scale included; the nominal bits
            where the shapes of the model's layers are not known.
        digest: of the effective config.
        notes: layers whose input width blocks do not divide, where their shapes are known.
    """

    __pydantic_config__ = STRICT
    pair: str
    granularity: str
    status: str
    reason: str
    format_name: str
    effective_bits: float
    digest: str
    notes: tuple[str, ...] = ()
