"""What a worker tells the controller about a case: JSON, attached to the test report.

A string survives pytest-xdist's serialization and needs no shared file system.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pytest_autoquant.errors import RecordError
from pytest_autoquant.grid.case import Case, SchemeCase
from pytest_autoquant.manifests.outcomes import FailedCase, KeptCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.scheme_manifest import SchemeManifest, dump_scheme
from pytest_autoquant.manifests.sensitivity_manifest import Manifest, dump_manifest
from pytest_autoquant.modelopt_support.status import Support

Body = str | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One case's outcome.

    Attributes:
        kind: ``manifest``, ``scheme``, ``kept``, ``skip``, ``error`` or ``structure``.
        body: a manifest's JSON, or the fields of the kind's line in ``results``.
        rerun: why a resumed run measured the case again.
        tolerances: of the case's ``aq_tolerance`` marker.
    """

    kind: str
    body: Body
    rerun: str | None = None
    tolerances: Mapping[str, float] | None = None

    def dump(self) -> str:
        """Return the message as JSON."""
        return json.dumps(asdict(self), default=repr)


def load_message(text: str) -> Message:
    """Read a message that ``Message.dump`` wrote.

    Raises:
        RecordError: another version of the harness wrote it.
    """
    try:
        return Message(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise RecordError(
            "a worker speaks another version of pytest-autoquant; install the same one on every "
            "host"
        ) from error


def manifest_message(manifest: Manifest) -> Message:
    """Carry a finished case."""
    return Message(kind="manifest", body=dump_manifest(manifest))


def scheme_message(manifest: SchemeManifest) -> Message:
    """Carry a derived scheme."""
    return Message(kind="scheme", body=dump_scheme(manifest))


def kept_message(case: Case) -> Message:
    """Carry a case whose manifest of an earlier run still holds."""
    return Message(kind="kept", body=asdict(KeptCase(case_id=case.case_id)))


def skip_message(
    case: Case | SchemeCase, support: Support, effective_bits: float | None = None
) -> Message:
    """Carry a case that cannot run here; the bits are what it would have stored per weight."""
    line = SkippedCase(
        case_id=case.case_id,
        status=support.status.value,
        reason=support.reason,
        effective_bits=effective_bits,
    )
    return Message(kind="skip", body=asdict(line))


def error_message(case: Case | SchemeCase, problem: str) -> Message:
    """Carry a case that raised."""
    return Message(kind="error", body=asdict(FailedCase(case_id=case.case_id, problem=problem)))


def structure_message(line: StructureCheck) -> Message:
    """Carry a structure case's outcome."""
    return Message(kind="structure", body=asdict(line))
