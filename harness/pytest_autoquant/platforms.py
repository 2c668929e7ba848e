"""The operating systems that this package runs on."""

from __future__ import annotations

from platform import system

from pytest_autoquant.errors import UsageError


def check_platform() -> None:
    """Check that this is a POSIX system: the outcome log and the memory record need one.

    Raises:
        UsageError: this is Windows.
    """
    if system() == "Windows":
        raise UsageError(
            "pytest-autoquant does not run on Windows; use Linux, macOS or the Windows Subsystem "
            "for Linux"
        )
