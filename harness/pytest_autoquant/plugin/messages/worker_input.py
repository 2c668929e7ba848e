"""What the controller tells each xdist worker before it starts, as one JSON string."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_autoquant.regression.recorded_model import RecordedModel
    from pytest_autoquant.regression.resume import Earlier

WORKER_INPUT = "autoquant"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInput:
    """One worker's part of the machine and of the work.

    Attributes:
        is_dealt_by_part: whether the controller sends whole parts of the cases to workers.
        gpu: index of the worker's GPU among those visible on its host; None outside xdist.
        workers_on_host: how many workers share the CPU cores of the host.
        earlier: fingerprints of the cases that a resumed run may keep.
        recorded: whose results the report folder has under the model's name.
    """

    is_dealt_by_part: bool = False
    gpu: int | None = None
    workers_on_host: int = 1
    earlier: Earlier = field(default_factory=dict)
    recorded: RecordedModel | None = None

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


def worker_input_of(config: pytest.Config) -> WorkerInput:
    """Return what the controller told this worker; the defaults outside xdist."""
    given: Mapping[str, Any] = getattr(config, "workerinput", {})
    if WORKER_INPUT not in given:
        return WorkerInput()
    found = json.loads(given[WORKER_INPUT])
    if found["earlier"]:
        from pytest_autoquant.manifests.fingerprint import Fingerprint

        found["earlier"] = {i: Fingerprint(**fields) for i, fields in found["earlier"].items()}
    if found["recorded"] is not None:
        from pytest_autoquant.manifests.records.sensitivity_manifest import ModelRecord
        from pytest_autoquant.regression.recorded_model import RecordedModel

        record = ModelRecord(**found["recorded"].pop("record"))
        found["recorded"] = RecordedModel(record=record, **found["recorded"])
    return WorkerInput(**found)
