"""The whole grid of a mixture of experts by replay against one stock case, in one run.

    pytest benchmarks/bench_mixture.py -s
    pytest benchmarks/bench_mixture.py -s --aq-model=qwen3-vl-30b-a3b --aq-weights=random \
        --aq-pairs=wint8_afp16,wint8_aint8,wint4_afp16,wint4_aint8,wfp8_afp8,wfp8_afp16

Without a model, of Qwen3-VL with four layers of 16 small experts. A model with fewer layers is a
folder with its ``config.json``, ``num_hidden_layers`` changed, and a tokenizer. ``small`` by
default; the other options of the plugin apply.
"""

import time

import pytest
from pytest_autoquant.models.registry import find_model
from pytest_autoquant.scoring.engine import Measurement
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.runner import MeasurementRunner
from pytest_autoquant.scoring.stock.engine import StockEngine

from tests.builders import ignore_progress, save_mixture, settings_of

STOCK_CASE = "wint8_aint8-default"


@pytest.fixture(scope="module")
def bench(plan, runner, tmp_path_factory):
    """What measures the chosen mixture, by default a small one on the CPU."""
    if not plan.source.is_embedded:
        return runner
    folder = save_mixture(tmp_path_factory.mktemp("mixture"), layers=4, experts=16)
    settings = settings_of(device="cpu", model=str(folder), weights="random")
    source = find_model(str(folder), random_weights=True)
    return MeasurementRunner(settings, source, ignore_progress, print)


def timed(engine, configs, data):
    """Return the seconds that an engine takes, and that all configs were measured."""
    started = time.perf_counter()
    outcomes = engine.score(configs, data, ignore_progress)
    assert all(isinstance(outcome, Measurement) for outcome in outcomes.values())
    return time.perf_counter() - started


def test_grid_by_replay_against_one_stock_case(bench, configs, plan):
    """Prints the ratio; the first run of each engine warms up."""
    data = bench.data(plan.sizes[0] if plan.settings.sizes else "small")
    chosen = [config for _, config in configs.values()]
    (stock_case,) = [config for name, config in configs.values() if name == STOCK_CASE]
    replay, stock = ReplayEngine(bench.model), StockEngine(bench.model, method="gradient")
    timed(replay, [stock_case], data)
    timed(stock, [stock_case], data)
    grid, one = timed(replay, chosen, data), timed(stock, [stock_case], data)
    print(
        f"\n{len(chosen)} configurations of {bench.model.record.architecture}, "
        f"{data.scored_tokens} scored tokens: {grid:.2f} s by replay, one stock case {one:.2f} s: "
        f"the grid takes {grid / one:.2f} times one stock case"
    )
