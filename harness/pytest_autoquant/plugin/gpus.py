"""The GPUs of this machine, known without torch, and those of each worker."""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path

from pytest_autoquant.errors import UsageError
from pytest_autoquant.text import counted

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that CUDA would show, in its own names."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        names = (name.strip() for name in named.split(","))
        return tuple(takewhile(lambda name: name not in ("", "-1"), names))
    nodes = (node for node in Path("/dev").glob("nvidia*") if node.name[6:].isdigit())
    return tuple(str(index) for index, _ in enumerate(nodes))


def pin(index: int) -> None:
    """Show this process only one of several GPUs; must come before torch looks at them."""
    gpus = visible_gpus()
    if len(gpus) > 1:
        os.environ[VISIBLE] = gpus[index % len(gpus)]


def pin_share(index: int, workers: int) -> None:
    """Show this process its share of the GPUs; must come before torch looks at them.

    Raises:
        UsageError: see ``refuse_too_many``.
    """
    gpus = visible_gpus()
    refuse_too_many(workers, "auto")
    if len(gpus) > 1:
        first, stop = (place * len(gpus) // workers for place in (index, index + 1))
        os.environ[VISIBLE] = ",".join(gpus[first:stop])


def refuse_too_many(workers: int, device: str) -> None:
    """Refuse more workers than GPUs where each spreads a model over GPUs of its own.

    Args:
        device: value of ``--aq-device``.

    Raises:
        UsageError: says how many workers there may be.
    """
    if device == "cpu" or not visible_gpus():
        return
    gpus = len(visible_gpus()) if device in ("auto", "cuda") else 1
    if workers > gpus:
        raise UsageError(
            f"--aq-device-map auto: {workers} workers on one host would share "
            f"{counted(gpus, 'GPU')}, and each would plan with all of its memory; give at most "
            f"-n {gpus}"
        )
