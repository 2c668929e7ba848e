"""The outcome log: outcomes without a manifest, one JSON line each, at the report root.

A line is handed to the kernel as its outcome arrives, so that a session that is killed, also by
SIGKILL, loses none; only a crash of the machine can. The last line of a case replaces earlier ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytest_autoquant.files import load_json, read_bytes, unwritable, write_atomic
from pytest_autoquant.manifests.records.json_record import (
    SCHEMA_VERSION,
    check_version,
    invalid_record,
    validate_record,
)
from pytest_autoquant.manifests.records.outcomes import (
    FailedCase,
    KeptCase,
    SkippedCase,
    StructureCheck,
)
from pytest_autoquant.text import well_formed

OUTCOME_LOG = "outcomes.jsonl"

LoggedOutcome = SkippedCase | FailedCase | KeptCase | StructureCheck

#: Outcome types by the value of ``kind`` in a line.
_KINDS: Mapping[str, type[LoggedOutcome]] = {
    "skipped": SkippedCase,
    "failed": FailedCase,
    "kept": KeptCase,
    "structure": StructureCheck,
}

#: What a line is called in error messages.
_NAME = "logged outcome"


def append(root: Path, outcome: LoggedOutcome) -> None:
    """Append an outcome to the log of a report root; it survives this process when this returns.

    A line that a killed session left incomplete is cut off first.

    Raises:
        WriteError: the log cannot be written.
    """
    path = root / OUTCOME_LOG
    try:
        root.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            _cut_incomplete_line(stream.fileno())
            stream.write(_line(outcome))  # the kernel has it once the stream is closed
    except OSError as error:
        raise unwritable(path, error) from error


def read(root: Path) -> tuple[LoggedOutcome, ...]:
    """Return the last outcome of every case and structure case, in the order of the log.

    An incomplete last line is ignored: its session was killed while writing it. Without a log
    there are no outcomes.

    Raises:
        RecordError: the log cannot be read, or a line is malformed; the message names the line.
    """
    path = root / OUTCOME_LOG
    if not path.exists():
        return ()
    *lines, _incomplete = read_bytes(path).split(b"\n")
    last: dict[object, LoggedOutcome] = {}
    for number, line in enumerate(lines, start=1):
        outcome = _parse(line, source=f"{path}, line {number}")
        last.pop(_key(outcome), None)
        last[_key(outcome)] = outcome
    return tuple(last.values())


def compact(root: Path, outcomes: Iterable[LoggedOutcome]) -> None:
    """Replace the log by these outcomes, atomically.

    Raises:
        WriteError: the log cannot be written; the old one is then unchanged.
    """
    write_atomic(root / OUTCOME_LOG, b"".join(map(_line, outcomes)))


def _key(outcome: LoggedOutcome) -> object:
    if isinstance(outcome, StructureCheck):
        return outcome.pair, outcome.granularity
    return outcome.case_id


def _line(outcome: LoggedOutcome) -> bytes:
    (kind,) = (name for name, each in _KINDS.items() if isinstance(outcome, each))
    document = {"schema_version": SCHEMA_VERSION, "kind": kind, **asdict(outcome)}
    text = json.dumps(document, allow_nan=False, ensure_ascii=False)
    return well_formed(text).encode() + b"\n"


def _parse(line: bytes, *, source: str) -> LoggedOutcome:
    try:
        raw = load_json(line)
    except ValueError as error:
        raise invalid_record(str(error), source=source, name=_NAME) from None
    check_version(raw, source=source, name=_NAME)
    fields: dict[str, Any] = {name: raw[name] for name in raw if name != "schema_version"}
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        problem = f"kind: must be one of {', '.join(_KINDS)}, got {kind!r}"
        raise invalid_record(problem, source=source, name=_NAME)
    return validate_record(_KINDS[kind], fields, source=source, name=_NAME)


def _cut_incomplete_line(descriptor: int) -> None:
    """Truncate a log after its last newline."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = os.pread(descriptor, size, 0)
    os.ftruncate(descriptor, content.rfind(b"\n") + 1)
