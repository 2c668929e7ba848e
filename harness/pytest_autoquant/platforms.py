"""The operating systems that this package runs on, and where they keep a user's caches."""

from __future__ import annotations

import os
from pathlib import Path
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


def cache_folder() -> Path:
    """Return the folder of this package among the user's caches; it may not exist.

    Source: XDG Base Directory Specification 0.8, which has relative paths ignored.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    caches = given if given.is_absolute() else Path("~/.cache").expanduser()
    return caches / "pytest-autoquant"
