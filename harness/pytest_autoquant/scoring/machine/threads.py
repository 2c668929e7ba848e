"""How many threads torch computes with while a worker measures."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from pytest_autoquant.models.layers import Linear

#: Weights of a model's average linear for each thread on a CPU. Threads spin while they wait for
#: each other, for a whole time slice where another process has a thread's core, and a second one
#: gains the less, the smaller the products are: 1.26 times at 28 thousand weights, 1.49 at 112
#: thousand, 1.65 at 449 thousand (``benchmarks/bench_threads.py``, two idle cores).
WEIGHTS_PER_THREAD = 2**16

#: By these a user sets the number before torch is imported.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def measuring_threads(linears: Collection[Linear] | None, *, workers: int) -> Iterator[None]:
    """Compute with as many threads as fit, and with as many as before afterwards.

    Args:
        linears: what is multiplied on the CPU; None where the work is elsewhere or not known.
        workers: number of workers on this host, which share its cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads(before, linears, workers=workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_threads(current: int, linears: Collection[Linear] | None, *, workers: int) -> int:
    """Return the number of threads to measure with; never more than ``current``.

    A number that the user set stays, unless workers would then have more threads than there are
    cores: two workers with all cores each were 30 times slower.
    """
    if _is_set_by_user(current):
        return current if workers == 1 else min(current, max(1, len(_cores()) // workers))
    share = max(1, current // workers)
    if not linears:
        return share
    weights = sum(linear.weights_per_product for linear in linears) / len(linears)
    return min(share, max(1, int(weights / WEIGHTS_PER_THREAD)))


def _is_set_by_user(current: int) -> bool:
    """Whether the environment sets the number, or torch has another than its own default.

    torch takes the number of cores, with MKL that of physical ones. A user's call of
    ``torch.set_num_threads`` with that number cannot be told from the default.
    """
    if any(os.environ.get(name) for name in _VARIABLES):
        return True
    cores = _cores()
    return current not in (len(cores), len(set(map(_siblings, cores))))


def _cores() -> Collection[int]:
    """Return the numbers of the logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


@cache
def _siblings(core: int) -> str:
    """Return what tells the physical core of a logical one, on Linux; else its own number."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return path.read_text()
    except OSError:
        return str(core)
