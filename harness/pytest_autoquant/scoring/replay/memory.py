"""What a replay does when the GPU runs out of memory: try again with less at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.models.device import release_cuda_memory
from pytest_autoquant.scoring.engine import Failure

_A = TypeVar("_A")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Where a recording lives, and by what the bytes at a time are divided."""

    device: torch.device
    divisor: int


def attempts(device: torch.device) -> tuple[Attempt, ...]:
    """Return attempts with less and less at a time, the last with the recording in host memory."""
    return (
        Attempt(device=device, divisor=1),
        Attempt(device=device, divisor=4),
        Attempt(device=torch.device("cpu"), divisor=16),
    )


def even_parts(count: int, most: int) -> Iterator[slice]:
    """Split ``count`` into the fewest parts of at most ``most``, which differ by at most 1."""
    parts = -(-count // max(1, most))
    for part in range(parts):
        yield slice(part * count // parts, (part + 1) * count // parts)


def recording_out_of_memory(reason: str) -> MeasurementError:
    """Return the failure of all ``attempts``, from torch's message."""
    return MeasurementError(
        f"out of memory with the recording in host memory: {reason}; use fewer captions "
        "(--aq-score-size) or a GPU with more memory"
    )


def first_that_fits(
    attempts: Sequence[_A],
    run: Callable[[_A], Mapping[str, _R | Failure]],
    configs: Sequence[EffectiveConfig],
    problem: Callable[[str], MeasurementError],
) -> Mapping[str, _R | Failure]:
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
