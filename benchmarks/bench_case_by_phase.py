"""Time of one case by phase on the embedded model.

    pytest benchmarks --benchmark-only

The phases are in the extra info of the saved run (``--benchmark-autosave``).
"""

import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.device import resolve_device, resolve_dtype
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.scoring.stock.engine import StockEngine


@pytest.fixture(scope="module")
def model():
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    return load_model(REGISTRY["tiny-qwen3-vl"], device=device, dtype=dtype)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_one_case_by_phase(benchmark, model, size):
    vocabulary = load_vocabulary()
    config = resolve(vocabulary.pairs["wint4_aint8"], vocabulary.granularities["default"])
    captions = load_captions(None, size)
    data = calibration_data(captions, model.tokenize, batch_size=32, score_size=128)
    engine = StockEngine(model, method="gradient")
    arguments = ([config], data, lambda *_: None)
    engine.score(*arguments)

    (measured,) = benchmark.pedantic(engine.score, args=arguments, rounds=3).values()

    benchmark.extra_info.update(measured.timing)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    print(size, {phase: f"{seconds:.2f} s" for phase, seconds in measured.timing.items()})
