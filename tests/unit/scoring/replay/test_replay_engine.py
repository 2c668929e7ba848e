"""The replay engine beside its scores: refusals, failures, memory and stored tapes."""

import gc
import re
import weakref

import pytest
import torch
from builders import awq_config, calibration_of, config_of, ignore_progress
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.grid.case import combinations
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.scoring.replay import engine, sweep
from pytest_autoquant.scoring.replay.engine import FEWER_TOKENS, ReplayEngine
from pytest_autoquant.scoring.replay.score_kernel import LinearScorer


def user_config(entries, algorithm="max"):
    base = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *entries]}
    return resolve(
        load_vocabulary().pairs["wint8_aint8"],
        Granularity(name="default"),
        base | {"algorithm": algorithm},
    )


def weight(**cfg):
    return {"quantizer_name": "*weight_quantizer", "cfg": cfg}


def activation(**cfg):
    return {"quantizer_name": "*input_quantizer", "cfg": cfg}


FP8 = config_of("wfp8_afp8")
INT4 = config_of("wint4_aint4", "w_group64")
WEIGHT_ONLY = config_of("wint4_afp16", "w_per_in_channel")
REFUSED_BY_MODELOPT = user_config([weight(num_bits=-1)])


@pytest.fixture(scope="module")
def data(tiny):
    return calibration_of(tiny)


@pytest.fixture(scope="module")
def swept(tiny, data):
    return ReplayEngine(tiny).score([FP8, INT4, WEIGHT_ONLY], data, ignore_progress)


def test_quantizers_are_described_by_modelopt(swept):
    quantizers = swept[INT4.digest].quantizers
    assert quantizers["weight_quantizer"].startswith("4 bit fake block_sizes={-1: 64")
    assert quantizers["input_quantizer"].startswith("4 bit fake")
    assert swept[WEIGHT_ONLY.digest].quantizers["input_quantizer"] == "disabled"


def test_config_that_raises_fails_alone(tiny, data, swept):
    configs = [REFUSED_BY_MODELOPT, FP8]
    outcomes = ReplayEngine(tiny).score(configs, data, ignore_progress)
    assert outcomes[REFUSED_BY_MODELOPT.digest].reason.startswith("ValidationError: ")
    assert outcomes[FP8.digest].groups == swept[FP8.digest].groups


def test_failure_does_not_keep_the_tape_alive(tiny, data, monkeypatch):
    inputs, stock = [], engine.capture

    def capture(*arguments):
        tape = stock(*arguments)
        inputs.append(weakref.ref(next(iter(tape.inputs.values()))))
        return tape

    monkeypatch.setattr(engine, "capture", capture)
    outcomes = ReplayEngine(tiny).score([REFUSED_BY_MODELOPT], data, ignore_progress)
    gc.collect()
    assert outcomes[REFUSED_BY_MODELOPT.digest].trace.startswith("Traceback")
    assert [reference() for reference in inputs] == [None]


@pytest.mark.parametrize(
    ("entry", "algorithm", "reason"),
    [
        (weight(num_bits=4), "awq_lite", "awq_lite needs more than"),
        (activation(num_bits=8, type="dynamic"), "max", "over the tokens"),
        (activation(num_bits=8, block_sizes={-1: 32}), "max", "shape of a batch"),
        (activation(num_bits=8, axis=0), "max", "other axes than the channels"),
        (activation(num_bits=8, type="dynamic", block_sizes={-1: 64}), "max", "shape of a batch"),
        (weight(num_bits=8, rotate=True), "max", "sets rotate"),
        (
            {"quantizer_name": "*weight_quantizer", "cfg": [{"num_bits": 4}, {"num_bits": 8}]},
            "max",
            "sequence of quantizers",
        ),
        (
            weight(num_bits=(2, 1), block_sizes={-1: 16, "type": "static", "scale_bits": (4, 3)}),
            "max",
            "siblings share",
        ),
    ],
)
def test_config_that_recorded_ranges_cannot_calibrate_is_refused(tiny, entry, algorithm, reason):
    assert reason in ReplayEngine(tiny).refuses(user_config([entry], algorithm))


def test_every_built_in_config_can_be_replayed_but_not_awq(tiny):
    replay = ReplayEngine(tiny)
    for combination in combinations(load_vocabulary()):
        config = resolve(combination.pair, combination.granularity)
        assert replay.refuses(config) is None, combination.test_id
    assert "awq_lite" in replay.refuses(awq_config())


def test_tape_is_stored_once_and_used_by_later_sweeps(tiny, data, swept, tmp_path):
    phases = []
    for _ in range(2):
        replay = ReplayEngine(tiny, tape_folder=tmp_path)
        outcome = replay.score([FP8], data, lambda phase, *_: phases.append(phase))
        assert outcome[FP8.digest].groups == swept[FP8.digest].groups
        phases.append("end")
    (stored,) = tmp_path.iterdir()
    assert re.fullmatch(r"tiny-qwen3-vl-small-[0-9a-f]{16}\.tape\.safetensors", stored.name)
    assert "capture" in phases[: phases.index("end")]
    assert "capture" not in phases[phases.index("end") :]
    stored.write_bytes(stored.read_bytes()[:1000])
    with pytest.raises(MeasurementError, match="is not a tape of this version"):
        replay.score([FP8], data, ignore_progress)


@pytest.fixture
def out_of_memory(monkeypatch):
    """Let the first linears run out of GPU memory; returns the token count of each linear tried."""

    def fail(failures):
        calls = []

        class Scorer(LinearScorer):
            def __init__(self, plain, *arguments, **options):
                calls.append(len(plain))
                if len(calls) <= failures:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\n")
                super().__init__(plain, *arguments, **options)

        monkeypatch.setattr(sweep, "LinearScorer", Scorer)
        return calls

    return fail


def test_out_of_memory_is_retried_with_fewer_tokens(tiny, data, swept, out_of_memory):
    num_tokens = out_of_memory(1)
    outcome = ReplayEngine(tiny).score([FP8], data, ignore_progress)[FP8.digest]
    expected = [group.score for group in swept[FP8.digest].groups]
    assert [group.score for group in outcome.groups] == pytest.approx(expected, rel=1e-6)
    assert num_tokens[0] > FEWER_TOKENS
    assert max(num_tokens[1:]) <= FEWER_TOKENS
    assert sum(num_tokens[1:]) == num_tokens[0] * len(tiny.linears)


def test_out_of_memory_in_every_attempt_is_the_outcome(tiny, out_of_memory):
    num_tokens, data = out_of_memory(10**6), calibration_of(tiny, score_size=1)
    outcome = ReplayEngine(tiny).score([FP8, INT4], data, ignore_progress)
    assert outcome[FP8.digest] is outcome[INT4.digest]
    assert re.fullmatch(
        r"out of memory with the tape \(up to 0\.\d GiB\) in host memory and 256 tokens at a time: "
        r"CUDA out of memory\. Tried to allocate 9 GiB; use fewer captions \(--aq-score-size\) .*",
        outcome[FP8.digest].reason,
    )
    assert len(num_tokens) == 3
