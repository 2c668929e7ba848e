"""Capture and sweep of an offloaded model against the same model on one device, in one run.

    pytest benchmarks/bench_offload.py -s
    pytest benchmarks/bench_offload.py -s --aq-model qwen3-vl-4b --aq-weights random

On a GPU the weights stay in host memory, but for what the GPU holds of ``--aq-max-memory`` (by
default one layer, so as good as nothing). On a CPU they stay on disk. ``small`` by default;
``--aq-sizes``, ``--aq-pairs`` and the other options of the plugin apply. The first sweep of each
model warms up and is not counted.
"""

import gc
from types import SimpleNamespace

import pytest
from pytest_autoquant.models.architecture import empty_model
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.offload.device_map import Offload, largest_layer
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.scoring.replay.engine import ReplayEngine

from tests.builders import ignore_progress


@pytest.fixture(scope="module")
def swept(plan, runner, configs):
    """Outcomes and size of each way to hold the model, by name; one of them is loaded at a time."""
    data = runner.data(plan.sizes[0] if plan.settings.sizes else "small")
    chosen = [config for _, config in configs.values()]
    found = {"resident": measured(runner.model, chosen, data)}
    del vars(runner)["model"]  # it is loaded again by whoever asks for it
    gc.collect()
    return found | {"offloaded": measured(offloaded(plan, runner), chosen, data)}


def offloaded(plan, runner):
    settings, dtype = plan.settings, runner.configurations.dtype
    is_random = settings.random_seed is not None
    empty = empty_model(plan.source, is_random, settings.trust_remote_code, dtype)
    least = MaxMemory(each=largest_layer(empty, dtype)[0])
    return load_model(
        plan.source,
        device=runner.device,
        dtype=dtype,
        random_seed=settings.random_seed,
        offload=Offload(max_memory=settings.max_memory or least, folder=settings.offload_dir),
        trust_remote_code=settings.trust_remote_code,
    )


def measured(model, configs, data):
    engine = ReplayEngine(model)
    engine.score(configs[:1], data, ignore_progress)
    outcomes = engine.score(configs, data, ignore_progress)
    first = next(iter(outcomes.values()))
    away = sum(p.nbytes for p in model.module.parameters() if p.is_meta)
    return SimpleNamespace(outcomes=outcomes, first=first, away=away / 2**30)


def test_offloaded_against_resident(swept, runner):
    for name, found in swept.items():
        timing = found.first.timing
        peak = (found.first.peak_cuda_bytes or 0) / 2**30
        print(
            f"\n{name}: {len(found.outcomes)} configs, capture {timing['capture']:.2f} s, sweep "
            f"{timing['sweep']:.2f} s, {found.away:.3f} GiB of weights are elsewhere, peak "
            f"{peak:.1f} GiB of GPU memory"
        )
    seconds = {name: sum(found.first.timing.values()) for name, found in swept.items()}
    print(f"offloaded takes {seconds['offloaded'] / seconds['resident']:.2f} times resident")


def test_offloaded_scores_are_the_resident_ones(swept):
    resident, offloaded = (swept[name].outcomes for name in ("resident", "offloaded"))
    assert offloaded.keys() == resident.keys()
    for digest, expected in resident.items():
        assert offloaded[digest].groups == expected.groups
