"""Measured KL divergence by replay and by stock AutoQuant, in one run, and their ratio.

    pytest benchmarks/bench_kl_div.py -s
    pytest benchmarks/bench_kl_div.py -s --aq-model qwen3-vl-4b --aq-weights random

``small`` by default; ``--aq-sizes``, ``--aq-pairs`` and other options of the plugin apply. Stock
AutoQuant measures one case of ``STOCK_CASES``, whose ranks are compared with the replay engine's.
"""

import pytest
from pytest_autoquant.scoring.engine import Measurement
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.stock.engine import StockEngine
from scipy.stats import spearmanr

from tests.builders import ignore_progress

STOCK_CASES = ("wint4_aint8-default", "wfp8_afp8-default", "wint8_aint8-default")


@pytest.fixture(scope="module")
def data(plan, runner):
    return runner.data(plan.sizes[0] if plan.settings.sizes else "small")


@pytest.fixture(scope="module")
def replayed(runner, configs, data):
    """Outcomes by digest of one sweep over all configs, after one of a single config."""
    chosen = [config for _, config in configs.values()]
    KLReplayEngine(runner.model).score(chosen[:1], data, ignore_progress)
    return KLReplayEngine(runner.model).score(chosen, data, ignore_progress)


def test_every_config_is_measured(runner, replayed, data):
    assert all(isinstance(outcome, Measurement) for outcome in replayed.values())
    first = next(iter(replayed.values()))
    gibibytes = sum(p.nbytes for p in runner.model.module.parameters()) / 2**30
    print(
        f"\n{len(replayed)} configs, {data.scored_tokens} scored tokens: record "
        f"{first.timing['record']:.2f} s, sweep {first.timing['sweep']:.2f} s, peak "
        f"{(first.peak_cuda_bytes or 0) / 2**30:.1f} GiB of GPU memory, model {gibibytes:.1f}"
    )


def test_replay_against_stock(runner, configs, replayed, data):
    known = dict(configs.values())
    name = next((each for each in STOCK_CASES if each in known), None)
    if name is None:
        pytest.skip(f"none of {', '.join(STOCK_CASES)} is selected")
    config = known[name]
    stock = StockEngine(runner.model, method="kl_div")
    theirs = stock.score([config], data, ignore_progress)[config.digest]
    ours = replayed[config.digest]
    pairs = [(a.score, b.score) for a, b in zip(ours.groups, theirs.groups, strict=True)]
    differences = sorted(abs(a - b) / b for a, b in pairs)
    seconds = sum(ours.timing.values()) / len(replayed)
    stock_seconds = sum(theirs.timing.values())
    print(
        f"\n{name}: stock {stock_seconds:.1f} s, replay {seconds:.2f} s per config, "
        f"{stock_seconds / seconds:.0f} times less; relative difference of a group median "
        f"{differences[len(differences) // 2]:.1e}, largest {differences[-1]:.1e}; Spearman "
        f"{spearmanr(*zip(*pairs, strict=True)).statistic:.5f}"
    )
    assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.99
