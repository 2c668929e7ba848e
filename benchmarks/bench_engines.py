"""Both engines on the same captions in one run, and their ratio.

    pytest benchmarks/bench_engines.py -s
    pytest benchmarks/bench_engines.py -s --aq-model qwen3-vl-4b --aq-weights random

``medium`` by default; ``--aq-sizes``, ``--aq-pairs`` and the other options of the plugin apply. The
stock engine runs a few cases only, with the harness's batches and with the usual padded ones.
"""

import time

import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.scoring.engine import Measurement
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.stock.engine import StockEngine
from torch.nn import functional

from tests.builders import ignore_progress

STOCK_CASES = ("wfp8_afp8-default", "wint4_aint8-default", "wint8_aint8-default")
PADDED_LENGTH, PADDED_BATCH = 512, 8


@pytest.fixture(scope="module")
def stock(aq_runner):
    return StockEngine(aq_runner.model, method="gradient")


@pytest.fixture(scope="module")
def size(plan):
    return plan.sizes[0] if plan.settings.sizes else "medium"


@pytest.fixture(scope="module")
def seconds():
    """Seconds by what was timed; the last test prints them."""
    return {}


@pytest.mark.parametrize("tape_device", ["auto", "cpu"])
def test_replay_sweep(benchmark, runner, configs, size, seconds, tape_device):
    data, chosen = runner.data(size), [config for _, config in configs.values()]
    engine = ReplayEngine(runner.model, tape_device=tape_device)
    engine.score(chosen, data, ignore_progress)
    outcomes = benchmark.pedantic(
        engine.score, args=(chosen, data, ignore_progress), rounds=3, iterations=1
    )
    assert all(isinstance(outcome, Measurement) for outcome in outcomes.values())
    measured = next(iter(outcomes.values()))
    benchmark.extra_info.update(measured.timing, configs=len(chosen), tokens=data.scored_tokens)
    seconds[f"replay, tape on {tape_device}"] = benchmark.stats.stats.min
    peak = (measured.peak_cuda_bytes or 0) / 2**30
    print(
        f"\n{len(chosen)} configs, {data.scored_tokens} scored tokens, tape on {tape_device}: "
        f"capture {measured.timing['capture']:.2f} s, sweep {measured.timing['sweep']:.2f} s, "
        f"peak {peak:.1f} GiB of GPU memory, model {model_gibibytes(runner):.1f}"
    )


def test_cost_of_fisher(runner, configs, size):
    """Prints the seconds of both methods of the replay engine, over all configs.

    On a CPU whose cores others use, the processor's seconds tell more.
    """
    data, chosen = runner.data(size), [config for _, config in configs.values()]
    found, processor = {}, {}
    for method in ("gradient", "fisher", "gradient", "fisher"):  # the first ones warm up
        started = time.process_time()
        outcomes = ReplayEngine(runner.model, method=method).score(chosen, data, ignore_progress)
        processor[method] = time.process_time() - started
        assert all(isinstance(outcome, Measurement) for outcome in outcomes.values())
        found[method] = next(iter(outcomes.values())).timing
    print(f"\n{len(chosen)} configs, {data.scored_tokens} scored tokens:")
    for method, timing in found.items():
        print(
            f"{method}: capture {timing['capture']:.2f} s, sweep {timing['sweep']:.2f} s, together "
            f"{sum(timing.values()) / sum(found['gradient'].values()):.2f} of gradient's time, "
            f"{processor[method] / processor['gradient']:.2f} of its processor seconds"
        )


def model_gibibytes(runner):
    return sum(p.nbytes for p in runner.model.module.parameters()) / 2**30


@pytest.mark.parametrize("count", [1, 8, 32, 64, 10_000])
def test_cost_of_one_more_config(benchmark, runner, configs, size, count):
    data = runner.data(size)
    chosen = [config for _, config in configs.values()][:count]
    engine = ReplayEngine(runner.model)
    outcomes = benchmark.pedantic(engine.score, args=(chosen, data, ignore_progress), rounds=1)
    sweep = next(iter(outcomes.values())).timing["sweep"]
    benchmark.extra_info.update(configs=len(chosen), sweep=sweep)
    print(f"\n{len(chosen)} configs: sweep {sweep:.2f} s")


@pytest.mark.parametrize("score_size", [16, 32, 64, 128])
def test_cost_of_one_more_scored_token(benchmark, runner, configs, size, score_size):
    captions = load_captions(None, size)
    data = calibration_data(captions, runner.model.tokenize, batch_size=32, score_size=score_size)
    chosen = [config for _, config in configs.values()]
    engine = ReplayEngine(runner.model)
    outcomes = benchmark.pedantic(engine.score, args=(chosen, data, ignore_progress), rounds=1)
    timing = next(iter(outcomes.values())).timing
    benchmark.extra_info.update(timing, tokens=data.scored_tokens)
    print(
        f"\n{data.scored_tokens} scored tokens: capture {timing['capture']:.2f} s, "
        f"sweep {timing['sweep']:.2f} s"
    )


def stock_cases(configs):
    chosen = [config for name, config in configs.values() if name in STOCK_CASES]
    if not chosen:
        pytest.skip(f"none of {', '.join(STOCK_CASES)} is selected")
    return chosen


def test_stock_with_our_batches(benchmark, runner, stock, configs, size, seconds):
    chosen, data = stock_cases(configs), runner.data(size)
    stock.score(chosen[:1], runner.data("small"), ignore_progress)
    benchmark.pedantic(stock.score, args=(chosen, data, ignore_progress), rounds=1)
    seconds["stock, our batches, per case"] = benchmark.stats.stats.min / len(chosen)


def padded_batches(runner, size):
    rows = [row for batch in runner.data(size).batches for row in batch.rows]
    ids = torch.zeros(len(rows), PADDED_LENGTH, dtype=torch.long, device=runner.device)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return list(zip(ids.split(PADDED_BATCH), mask.split(PADDED_BATCH), strict=True))


def test_stock_with_the_usual_padded_batches(benchmark, runner, configs, size, seconds):
    import modelopt.torch.quantization as mtq
    from pytest_autoquant.models.restore import preserved

    module, batches = runner.model.module, padded_batches(runner, size)

    def forward(module, batch):
        return module(input_ids=batch[0], attention_mask=batch[1], use_cache=False).logits

    def loss(logits, batch):
        labels = batch[0].masked_fill(batch[1] == 0, -100)[:, 1:]
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())

    def run():
        for config in stock_cases(configs):
            with preserved(module), quiet():
                mtq.auto_quantize(
                    module,
                    constraints={"effective_bits": 16.0},
                    quantization_formats=[config.modelopt()],
                    data_loader=batches,
                    forward_step=forward,
                    loss_func=loss,
                    num_calib_steps=len(batches),
                    num_score_steps=len(batches),
                    disabled_layers=list(runner.model.others),
                    verbose=False,
                )

    benchmark.pedantic(run, rounds=1)
    seconds["stock, padded batches, per case"] = benchmark.stats.stats.min / len(
        stock_cases(configs)
    )


def test_ratios(configs, seconds):
    """Prints how much a grid costs by either engine; the seconds are those of this run."""
    replay = seconds.get("replay, tape on auto")
    if replay is None or len(seconds) < 2:
        pytest.skip("needs the sweep and a stock measurement in the same run")
    print()
    for name, value in seconds.items():
        print(f"{name:40s} {value:8.2f} s")
        if name.startswith("stock"):
            ratio = value * len(configs) / replay
            print(f"  {len(configs)} cases would take {ratio:.0f} times the sweep")
    assert all(value * len(configs) > replay for name, value in seconds.items() if "stock" in name)
