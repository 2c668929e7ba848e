"""How many threads torch computes with while a worker measures."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from builders import linear
from pytest_autoquant.models.layers import architecture_linears
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.scoring.machine import threads
from pytest_autoquant.scoring.machine.threads import (
    WEIGHTS_PER_THREAD,
    measuring_threads,
    num_threads,
)


@pytest.fixture
def eight_cores(monkeypatch):
    """A host of four physical cores with two threads each, without a number set by the user."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_cores", lambda: range(8))
    monkeypatch.setattr(threads, "_siblings", lambda core: str(core // 2))


def linears_of(*weights):
    return tuple(linear(str(i), count // 64, 64) for i, count in enumerate(weights))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((WEIGHTS_PER_THREAD - 64,), 1),
        ((2 * WEIGHTS_PER_THREAD - 64,), 1),
        ((2 * WEIGHTS_PER_THREAD,), 2),
        ((WEIGHTS_PER_THREAD, 5 * WEIGHTS_PER_THREAD), 3),  # the mean counts
        ((1000 * WEIGHTS_PER_THREAD,), 8),
        ((), 8),  # not known
    ],
)
def test_threads_follow_the_average_linear(eight_cores, weights, expected):
    assert num_threads(8, linears_of(*weights), workers=1) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("tiny-qwen3-vl", 1), ("tiny-qwen2.5-vl", 1), ("qwen3-vl-2b", 8)]
)
def test_embedded_models_take_one_thread_and_full_size_ones_all(eight_cores, name, expected):
    linears = architecture_linears(REGISTRY[name], trust_remote_code=False)
    assert num_threads(8, linears, workers=1) == expected


@pytest.mark.parametrize(
    ("current", "workers", "expected"), [(8, 3, 2), (4, 2, 2), (8, 1, 8), (4, 9, 1)]
)
def test_workers_share_the_threads_that_torch_takes_by_default(
    eight_cores, current, workers, expected
):
    assert num_threads(current, None, workers=workers) == expected


@pytest.mark.parametrize(
    ("variable", "current", "workers", "expected"),
    [
        ("OMP_NUM_THREADS", 8, 1, 8),
        ("MKL_NUM_THREADS", 3, 1, 3),
        (None, 3, 1, 3),  # by torch.set_num_threads
        (None, 3, 2, 3),
        ("OMP_NUM_THREADS", 8, 4, 2),
    ],
)
def test_number_that_the_user_set_stays_within_the_cores(
    eight_cores, monkeypatch, variable, current, workers, expected
):
    if variable is not None:
        monkeypatch.setenv(variable, str(current))
    assert num_threads(current, linears_of(64), workers=workers) == expected


def test_number_of_before_comes_back_also_after_an_error(eight_cores, one_thread):
    torch.set_num_threads(4)
    with suppress(ValueError), measuring_threads(linears_of(64), workers=1):
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == 4


def test_default_of_torch_is_not_taken_for_the_users_wish():
    """In a process of its own, whose torch has its default."""
    code = (
        "import torch; from pytest_autoquant.scoring.machine.threads import num_threads;"
        "from builders import linear; n = torch.get_num_threads();"
        "print(num_threads(n, (linear('0', 8, 8),), workers=1))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1"]
