"""Where the time of a process goes: seconds by phase, which add up to the time that passed."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal[
    "imports",
    "model",
    "probing",
    "capture",
    "sweep",
    "score checks",
    "whole-model KL",
    "schemes",
    "selection",
    "manifests",
    "writing",
    "other",
]

#: In the order in which they are shown. ``other`` is what no phase accounts for.
PHASES: tuple[Phase, ...] = get_args(Phase)


class PhaseClock:
    """Counts every moment for one phase: the innermost that is open, or ``other``.

    A phase inside another pauses it. Used by one thread; what another does meanwhile is not seen.

    Args:
        now: returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._open: list[Phase] = ["other"]
        self._seconds: dict[Phase, float] = {}
        self._since = now()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the block for a phase, less what phases inside it take."""
        self._note()
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Count the block as imports, and import without garbage collection.

        Hardly anything of a module is garbage, and to look through half a million new objects again
        and again takes a fifth of the time. They stay out of later collections too.
        Where everything is imported already nothing is kept out of them: there is garbage by then.
        """
        was_enabled, before = gc.isenabled(), len(sys.modules)
        gc.disable()
        try:
            with self.phase("imports"):
                yield
        finally:
            if was_enabled and len(sys.modules) > before:
                gc.freeze()
            if was_enabled:
                gc.enable()

    def move(self, seconds: float, *, source: Phase, target: Phase) -> None:
        """Count for ``target`` what was counted for ``source``, but never more than that."""
        self._note()
        moved = min(seconds, self._seconds.get(source, 0.0))
        self._add(source, -moved)
        self._add(target, moved)

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by phase; their sum is the time since the clock was made."""
        self._note()
        return {phase: self._seconds[phase] for phase in PHASES if phase in self._seconds}

    def _note(self) -> None:
        now = self._now()
        self._add(self._open[-1], now - self._since)
        self._since = now

    def _add(self, phase: Phase, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
