"""The extra ``[measure]``: whether what measures is installed."""

from __future__ import annotations

from importlib.util import find_spec

from pytest_autoquant.errors import UsageError

MEASURE_MODULES = ("torch", "transformers", "modelopt", "accelerate")


def missing_modules() -> tuple[str, ...]:
    """Return the modules of ``[measure]`` that are not installed, without importing any."""
    return tuple(name for name in MEASURE_MODULES if find_spec(name) is None)


def require_measure(command: str) -> None:
    """Check that a command that runs ModelOpt can import it.

    Args:
        command: what the user ran, the subject of the message.

    Raises:
        UsageError: a module of ``[measure]`` is not installed.
    """
    missing = missing_modules()
    if missing:
        raise UsageError(
            f"{command} needs {', '.join(missing)}, which this Python does not have; "
            "install the extra: pip install 'pytest-autoquant[measure]'"
        )
