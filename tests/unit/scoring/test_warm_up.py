"""The first work on a GPU, run here on the CPU; a run on the CPU does none of it."""

import threading

import pytest
import torch
from pytest_autoquant.scoring.machine import warm_up
from pytest_autoquant.scoring.machine.warm_up import first_work, warming_up

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_work_scores_a_linear_of_each_width(dtype):
    narrow, wide = first_work(CPU, dtype, [96, 48, 48])
    # 8 tokens of a caption x width outputs, each of which changes by the 128 inputs of one.
    assert narrow.tolist() == [[8 * 48 * 128.0**2] * 2]
    assert wide.tolist() == [[8 * 96 * 128.0**2] * 2]


def test_cpu_is_not_warmed_up(monkeypatch):
    monkeypatch.setattr(warm_up, "first_work", lambda *_: pytest.fail("no GPU"))
    before = threading.active_count()
    with warming_up(CPU, torch.float32, [48]):
        assert threading.active_count() == before


def test_warm_up_that_fails_is_forgotten(monkeypatch):
    threads = []

    def fail(*_):
        threads.append(threading.current_thread().name)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(warm_up, "first_work", fail)
    monkeypatch.setattr(warm_up, "prepare_kernel", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    with warming_up(torch.device("cuda"), torch.bfloat16, [48]):
        pass
    assert threads == ["warm-up"]
    assert "warm-up" not in {thread.name for thread in threading.enumerate()}
