"""The GPUs of this machine, known without torch, and one of them for each worker."""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path

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
