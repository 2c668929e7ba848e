"""The cost of a sweep as a ratio, for pytest-benchmark to compare with an earlier run.

    pytest benchmarks/bench_cost.py --benchmark-save=main
    pytest benchmarks/bench_cost.py --benchmark-compare --benchmark-compare-fail=min:50%

Seconds differ from machine to machine, so what is recorded is none: time counts in stock AutoQuant
cases measured in the same run, memory in sizes of the model.
"""

import time
from dataclasses import dataclass

import pytest
import torch
from pytest_autoquant.plugin.pytest_config import plan_of
from pytest_autoquant.scoring.engine import Measurement
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.stock.engine import StockEngine

from tests.builders import ignore_progress

REFERENCE = "wint8_aint8-default"
ROUNDS = 5


@dataclass
class Unit:
    """What one unit of the recorded numbers is; set before anything is recorded."""

    seconds: float = 1.0
    memory: float = 0.0


UNIT = Unit()


def time_in_reference_cases():
    return time.perf_counter() / UNIT.seconds


def memory_in_models():
    return UNIT.memory


@pytest.fixture(scope="module")
def stock(aq_runner):
    return StockEngine(aq_runner.model, method="gradient")


@pytest.fixture(scope="module")
def configs(pytestconfig, runner):
    combinations = plan_of(pytestconfig).combinations
    supported = [c for c in combinations if runner.support(c).is_supported]
    return {c.test_id: runner.config(c) for c in supported}


@pytest.fixture(scope="module")
def reference(runner, stock, configs):
    """Seconds that stock AutoQuant takes for one case, the best of some."""
    if REFERENCE not in configs:
        pytest.skip(f"{REFERENCE} is not selected or does not run here")
    config, data, taken = configs[REFERENCE], runner.data("small"), []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        (outcome,) = stock.score([config], data, ignore_progress).values()
        taken.append(time.perf_counter() - started)
        assert isinstance(outcome, Measurement)
    return min(taken)


def sweep(runner, configs):
    distinct = {config.digest: config for config in configs.values()}
    engine, data = ReplayEngine(runner.model), runner.data("small")
    return engine.score(list(distinct.values()), data, ignore_progress)


@pytest.mark.benchmark(timer=time_in_reference_cases)
def test_time_of_a_sweep(benchmark, runner, configs, reference):
    sweep(runner, configs)
    UNIT.seconds = reference
    outcomes = benchmark.pedantic(sweep, args=(runner, configs), rounds=ROUNDS)
    benchmark.extra_info.update(unit="stock cases", reference_seconds=reference)
    assert all(isinstance(outcome, Measurement) for outcome in outcomes.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.benchmark(timer=memory_in_models)
def test_peak_memory_of_a_sweep(benchmark, runner, configs):
    model = sum(p.nbytes for p in runner.model.module.parameters())

    def measure():
        outcomes = sweep(runner, configs)
        UNIT.memory = max(outcome.peak_cuda_bytes for outcome in outcomes.values()) / model

    def forget():
        UNIT.memory = 0.0

    benchmark.pedantic(measure, setup=forget, rounds=2)
    benchmark.extra_info.update(unit="sizes of the model", model_bytes=model)
    assert UNIT.memory > 1
