"""What a second thread gains on the CPU, and what two busy processes cost a sweep.

    pytest benchmarks/bench_threads.py -s

Each round measures both sides one after the other, so that what else uses the machine meets both; a
quiet machine of two cores shows most.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import EMBEDDED_TOKENIZER, find_model
from pytest_autoquant.scoring.machine.threads import measuring_threads
from pytest_autoquant.scoring.replay.engine import ReplayEngine

NEIGHBOURS, ROUNDS = 2, 5
PAIRS = ("wint4_aint8", "wfp8_afp8", "wint8_afp16", "wint4_afp16")
GRANULARITIES = ("default", "w_group64", "a_per_token_dynamic")


def configs():
    known = load_vocabulary()
    resolved = [
        resolve(known.pairs[p], known.granularities[g]) for p in PAIRS for g in GRANULARITIES
    ]
    return list({config.digest: config for config in resolved if config.no_effect is None}.values())


def loaded(source, **options):
    return load_model(source, device=torch.device("cpu"), dtype=torch.float32, **options)


def widened(folder, factor):
    """Return the embedded architecture with wider layers, two of them, and random weights."""
    shutil.copytree(EMBEDDED_TOKENIZER, folder)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | {"num_hidden_layers": 2}
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        text[name] *= factor
    config["vision_config"]["out_hidden_size"] *= factor
    (folder / "config.json").write_text(json.dumps(config | {"text_config": text}))
    return loaded(find_model(str(folder), random_weights=True), random_seed=0)


def sweep_of(model):
    """Return what sweeps the configurations on size small and returns the seconds it took."""
    captions = load_captions(None, "small")
    data = calibration_data(captions, model.tokenize, batch_size=32, score_size=128)

    def sweep():
        started = time.perf_counter()
        engine = ReplayEngine(model, tape_device="cpu", tape_folder=None)
        engine.score(configs(), data, lambda *_: None)
        return time.perf_counter() - started

    sweep()
    return sweep


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def busy():
    """Let processes compute until the block ends."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NEIGHBOURS)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def shown(ratios):
    load = os.getloadavg()[0]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{statistics.median(ratios):.2f} times ({spread}; load {load:.1f})"


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_gain_of_a_second_thread(tmp_path, factor):
    model = widened(tmp_path / "wide", factor)
    sweep = sweep_of(model)
    gains = []
    for _ in range(ROUNDS):
        with threads(1):
            one = sweep()
        with threads(2):
            gains.append(one / sweep())
    weights = sum(linear.num_weights for linear in model.linears) / len(model.linears)
    print(f"{weights:,.0f} weights per linear: two threads are as fast as one {shown(gains)}")


@pytest.mark.parametrize("chosen", [True, False], ids=["chosen", "two"])
def test_cost_of_two_busy_neighbours(chosen):
    model = loaded(find_model("tiny-qwen3-vl", random_weights=False))
    sweep = sweep_of(model)
    costs = []
    with measuring_threads(model.linears, workers=1) if chosen else threads(2):
        count = torch.get_num_threads()
        for _ in range(ROUNDS):
            alone = sweep()
            with busy():
                costs.append(sweep() / alone)
    print(f"{count} threads, {NEIGHBOURS} busy processes beside: {shown(costs)}")
    if chosen:
        assert statistics.median(costs) <= 3
