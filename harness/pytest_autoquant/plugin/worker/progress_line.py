"""A progress line below pytest's own, on a real terminal, also while pytest captures output."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest

QUIET_SECONDS = 1.0
REFRESH_SECONDS = 0.25

#: File descriptor of the terminal, outside of pytest's capture.
STDOUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """The terminal that pytest writes to.

    Attributes:
        write: writes past pytest's capture, without pytest counting it as its own.
        column: returns the column after pytest's own last character, from 0.
        width: returns the number of columns.
    """

    write: Callable[[str], None]
    column: Callable[[], int]
    width: Callable[[], int]


class ProgressLine:
    """Shows ``case: phase batch/total, elapsed`` once a case has taken a second.

    The line stands below pytest's own line, which may be half written: the test's name without its
    result. When the case ends, the line is erased and the cursor goes back to where pytest left it.
    """

    def __init__(self, terminal: Terminal | None) -> None:
        self._terminal = terminal
        self._label = ""
        self._started = 0.0
        self._shown_at: float | None = None

    def start(self, label: str) -> None:
        """Begin a case."""
        self.stop()
        self._label, self._started = label, time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` batches of a phase are finished."""
        now = time.monotonic()
        elapsed = now - self._started
        is_due = self._shown_at is None or now - self._shown_at >= REFRESH_SECONDS
        if self._terminal is None or elapsed < QUIET_SECONDS or not is_due:
            return
        width = self._terminal.width()
        if self._terminal.column() >= width:
            return  # where a full line wraps differs between terminals
        text = f"{self._label}: {phase} {done}/{total}, {elapsed:.0f} s"[: width - 1]
        self._terminal.write(("\n" if self._shown_at is None else "\r\x1b[K") + text)
        self._shown_at = now

    def stop(self) -> None:
        """End a case: erase the line if it is shown, and go back to pytest's own."""
        if self._shown_at is None or self._terminal is None:
            return
        column = self._terminal.column()
        right = f"\x1b[{column}C" if column else ""
        self._terminal.write(f"\r\x1b[K\x1b[A{right}")
        self._shown_at = None


def terminal_writer(config: pytest.Config) -> Terminal | None:
    """Return pytest's terminal, None where its output does not go to one."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or not reporter.isatty:
        return None
    writer = config.get_terminal_writer()

    def write(text: str) -> None:
        """Write to the terminal itself: libraries may have redirected ``sys.stdout`` meanwhile."""
        reporter.flush()
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            os.write(STDOUT, text.encode(errors="replace"))

    return Terminal(
        write=write,
        column=lambda: writer.width_of_current_line,
        width=lambda: writer.fullwidth,
    )
