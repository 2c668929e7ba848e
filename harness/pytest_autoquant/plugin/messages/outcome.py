"""What a worker reports of a test: a closed union of typed outcomes, as JSON on the test report.

A string survives pytest-xdist's serialization and needs no shared file system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.records.outcomes import (
    FailedCase,
    KeptCase,
    SkippedCase,
    StructureCheck,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCase:
    """A finished case.

    Attributes:
        manifest: the manifest's JSON, byte for byte as it is written.
        rerun: why a resumed run measured the case again, None if it did not.
    """

    manifest: str
    rerun: str | None = None
    kind: Literal["measured"] = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedScheme:
    """A derived scheme; ``manifest`` is the scheme manifest's JSON."""

    manifest: str
    kind: Literal["scheme"] = "scheme"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A case that a resumed run keeps as it was measured before."""

    case: KeptCase
    kind: Literal["kept"] = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A case that cannot run here."""

    case: SkippedCase
    kind: Literal["skipped"] = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A case that raised instead of measuring."""

    case: FailedCase
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A case that is not measured because its name is another model's; ``problem`` says which.

    It is no outcome of the case: that is the other model's.
    """

    problem: str
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A structure case."""

    check: StructureCheck
    kind: Literal["checked"] = "checked"


Outcome = MeasuredCase | DerivedScheme | Kept | Skipped | Failed | Refused | Checked


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """Everything that one test reports.

    Attributes:
        outcomes: in the order in which the test produced them.
        tolerances: keyword arguments of the test's ``aq_tolerance`` marker, None without one.
        process: name of an xdist worker, None without xdist.
        timing: seconds of that worker so far, by phase.
    """

    outcomes: tuple[Annotated[Outcome, Field(discriminator="kind")], ...]
    tolerances: Mapping[str, float] | None = None
    process: str | None = None
    timing: Mapping[str, float] = field(default_factory=dict)


_ADAPTER: TypeAdapter[WorkerReport] = TypeAdapter(WorkerReport)


def dump_report(report: WorkerReport) -> str:
    """Return the report as JSON."""
    return _ADAPTER.dump_json(report).decode()


def load_report(text: Any) -> WorkerReport:
    """Read what ``dump_report`` wrote.

    Raises:
        RecordError: the worker runs another version of pytest-autoquant.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise RecordError(
            "a worker runs another version of pytest-autoquant than the controller; install the "
            "same version on every host"
        ) from error
