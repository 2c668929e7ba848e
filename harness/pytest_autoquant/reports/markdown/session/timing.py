"""Where the time of the last run went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pytest_autoquant.manifests.records.session_summary import ProcessTiming
from pytest_autoquant.phases import PHASES
from pytest_autoquant.text import counted

TIMING_MEANS = (
    "Seconds from when pytest found out that the run is one of this plugin until the reports of "
    "the folder were written; of a worker, until its last test ended. A phase inside another is "
    "not part of it, so each column adds up. Capture and sweep obtain the scores, manifests holds "
    "the error bars, writing what the controller does with a result; other is the rest, pytest's "
    "own work among it, and in the controller the time in which it waits for workers."
)

_CONTROLLER = "controller"


def timing_rows(timing: Sequence[ProcessTiming]) -> list[tuple[str, ...]]:
    """Return per phase that took time the seconds of each process; the sum is the last row."""
    shown = [
        (phase, *(f"{process.phases.get(phase, 0.0):.2f}" for process in timing))
        for phase in PHASES
        if any(phase in process.phases for process in timing)
    ]
    return [*shown, ("in all", *(f"{process.seconds:.2f}" for process in timing))]


def timing_headers(timing: Sequence[ProcessTiming]) -> tuple[str, ...]:
    """Return the header of the table: the phase, and each process where there are several."""
    return ("phase", *(p.process for p in timing)) if len(timing) > 1 else ("phase", "seconds")


def timing_line(timing: Mapping[str, Mapping[str, float]]) -> str:
    """Return one line on a session, the longest phases first; workers are summed.

    Args:
        timing: seconds by phase, by process. What the controller waits is left out.
    """
    sums: dict[str, float] = {}
    for process, phases in timing.items():
        for phase, seconds in phases.items():
            if process != _CONTROLLER or phase != "other":
                sums[phase] = sums.get(phase, 0.0) + seconds
    longest = sorted(sums, key=lambda phase: (phase == "other", -sums[phase]))
    parts = ", ".join(f"{phase} {sums[phase]:.1f}" for phase in longest if sums[phase] >= 0.05)
    workers = len(timing.keys() - {_CONTROLLER})
    of = f" of {counted(workers, 'worker')}, summed" if _CONTROLLER in timing else ""
    return f"{math.fsum(sums.values()):.1f} s{of}: {parts}"
