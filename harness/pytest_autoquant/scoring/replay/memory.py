"""What a replay does when the GPU runs out of memory: try again with less at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.models.device import release_cuda_memory
from pytest_autoquant.scoring.engine import Failure, Outcomes

_A = TypeVar("_A")


def first_that_fits(
    attempts: Sequence[_A],
    run: Callable[[_A], Outcomes],
    configs: Sequence[EffectiveConfig],
    problem: Callable[[str], MeasurementError],
) -> Outcomes:
    """Run attempts in turn until one does not run out of GPU memory.

    Args:
        problem: returns the failure of every config when none fits, from torch's last message.
    """
    reason = ""
    for attempt in attempts:
        try:
            return run(attempt)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        # After the except clause: the exception keeps the frames, and so the tensors, alive.
        release_cuda_memory()
    failure = Failure.of(problem(reason))
    return {config.digest: failure for config in configs}
