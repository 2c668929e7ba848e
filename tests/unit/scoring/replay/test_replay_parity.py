"""The replay engine scores what stock AutoQuant scores.

The plugin's options choose model, device and combinations, so parity on a GPU is one command. With
``-s`` it shows the largest difference of each combination:

    pytest tests/unit/test_engine_replay.py -m slow
    pytest tests/unit/test_engine_replay.py -m slow --aq-model qwen3-vl-4b --aq-weights random
"""

import re

import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.case import combinations
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support.presets import load_preset
from pytest_autoquant.plugin.pytest_config import session_of
from pytest_autoquant.scoring.replay import engine as replay
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.replay.score_kernel import LinearScorer
from pytest_autoquant.scoring.stock import StockEngine

VOCABULARY = load_vocabulary()
TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-3}
SAMPLE = (
    "wfp8_afp8-default",
    "wint8_aint8-recipe_match_channel_token",
    "wint4_aint4-w_group64",
    "wint4_afp16-w_per_in_channel",
    "wfp16_aint8-a_per_hidden_channel",
)


def ignore_progress(phase, done, total):
    pass


@pytest.fixture(scope="module")
def bench(pytestconfig):
    return session_of(pytestconfig).bench(ignore_progress, print)


@pytest.fixture(scope="module")
def tiny(bench):
    return bench.model


def batches(tiny, size="small", score_size=128):
    captions = load_captions(None, size)
    ids = tiny.tokenize(captions.lines)
    return calibration_data(captions, ids, batch_size=32, score_size=score_size)


@pytest.fixture(scope="module")
def configs(pytestconfig, bench):
    found = {}
    for combination in session_of(pytestconfig).combinations:
        if bench.support(combination).is_supported:
            config = bench.config(combination)
            found.setdefault(config.digest, (combination.test_id, config))
    return dict(found.values())


@pytest.fixture(scope="module")
def swept(tiny, configs):
    return ReplayEngine(tiny).score(list(configs.values()), batches(tiny), ignore_progress)


def assert_parity(tiny, config, replayed, data):
    """Return the largest relative difference of a group."""
    engine = StockEngine(tiny, method="gradient")
    (stock,) = engine.score([config], data, ignore_progress).values()
    assert [g.modules for g in replayed.groups] == [g.modules for g in stock.groups]
    for ours, theirs in zip(replayed.groups, stock.groups, strict=True):
        assert ours.score == pytest.approx(theirs.score, rel=TOLERANCE[tiny.record.dtype]), (
            ours.name
        )
    pairs = zip(replayed.groups, stock.groups, strict=True)
    return max(abs(a.score - b.score) / b.score for a, b in pairs if b.score)


@pytest.mark.parametrize("name", SAMPLE)
def test_replay_equals_stock(tiny, configs, swept, name):
    assert_parity(tiny, configs[name], swept[configs[name].digest], batches(tiny))


@pytest.mark.slow
def test_replay_equals_stock_for_every_combination_that_runs_here(tiny, configs):
    data = batches(tiny)
    swept = ReplayEngine(tiny).score(list(configs.values()), data, ignore_progress)
    assert configs
    for name, config in configs.items():
        largest = assert_parity(tiny, config, swept[config.digest], data)
        print(f"{name}: largest difference of a group {largest:.1e}")


def test_a_sweep_gives_each_config_what_it_gets_alone(tiny, configs, swept):
    config = configs["wint4_aint4-w_group64"]
    alone = ReplayEngine(tiny).score([config], batches(tiny), ignore_progress)[config.digest]
    assert alone.groups == swept[config.digest].groups


def test_scores_are_the_same_bit_for_bit_when_repeated(tiny, configs, swept):
    again = ReplayEngine(tiny).score(list(configs.values()), batches(tiny), ignore_progress)
    assert all(again[digest].groups == swept[digest].groups for digest in swept)


def test_quantizers_are_described_in_modelopts_words(configs, swept):
    described = swept[configs["wint4_aint4-w_group64"].digest].quantizers
    assert described["weight_quantizer"].startswith("4 bit fake block_sizes={-1: 64")
    assert swept[configs["wint4_afp16-w_per_in_channel"].digest].quantizers["input_quantizer"] == (
        "disabled"
    )


def test_the_model_is_the_same_after_a_sweep(tiny, configs):
    module = tiny.module
    ids = torch.arange(5, 25, device=tiny.device)[None]

    def everything():
        return {
            "output": module(input_ids=ids, use_cache=False).logits.detach().clone(),
            "weights": [p.detach().clone() for p in module.parameters()],
            "identity": [id(p) for p in module.parameters()],
            "grads": [(p.requires_grad, p.grad) for p in module.parameters()],
            "classes": [type(child) for child in module.modules()],
            "names": [list(child.__dict__) for child in module.modules()],
            "hooks": [
                (len(child._forward_hooks), len(child._backward_hooks))
                for child in module.modules()
            ],
            "config": module.config.to_json_string(),
            "training": module.training,
        }

    before = everything()
    ReplayEngine(tiny).score(list(configs.values())[:6], batches(tiny), ignore_progress)
    after = everything()
    assert torch.equal(before.pop("output"), after.pop("output"))
    first, second = before.pop("weights"), after.pop("weights")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert before == after


def test_a_config_that_raises_loses_only_itself(tiny, configs, swept):
    fine = configs["wint8_aint8-recipe_match_channel_token"]
    broken = user_config([entry("*weight_quantizer", num_bits=-1)])
    outcomes = ReplayEngine(tiny).score([broken, fine], batches(tiny), ignore_progress)
    assert outcomes[broken.digest].reason.startswith("ValidationError: ")
    assert outcomes[fine.digest].groups == swept[fine.digest].groups


def test_a_failure_lets_go_of_the_tape(tiny, monkeypatch):
    import gc
    import weakref

    broken = user_config([entry("*weight_quantizer", num_bits=-1)])
    kept = []
    stock = replay.capture

    def capture(*arguments):
        tape = stock(*arguments)
        kept.append(weakref.ref(next(iter(tape.inputs.values()))))
        return tape

    monkeypatch.setattr(replay, "capture", capture)
    outcomes = ReplayEngine(tiny).score([broken], batches(tiny), ignore_progress)
    gc.collect()
    assert outcomes[broken.digest].trace.startswith("Traceback")
    assert kept[0]() is None


def user_config(entries, algorithm="max", pair="wint8_aint8"):
    base = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *entries]}
    plain = Granularity(name="default")
    return resolve(VOCABULARY.pairs[pair], plain, {**base, "algorithm": algorithm})


def entry(name, **cfg):
    return {"quantizer_name": name, "cfg": cfg}


@pytest.mark.parametrize(
    ("entries", "algorithm", "reason"),
    [
        ([entry("*weight_quantizer", num_bits=4)], "awq_lite", "awq_lite needs more than"),
        ([entry("*input_quantizer", num_bits=8, type="dynamic")], "max", "over the tokens"),
        ([entry("*input_quantizer", num_bits=8, block_sizes={-1: 32})], "max", "shape of a batch"),
        ([entry("*input_quantizer", num_bits=8, axis=0)], "max", "other axes than the channels"),
        ([entry("*input_quantizer", num_bits=8, axis=(0, 1))], "max", "other axes"),
        (
            [entry("*input_quantizer", num_bits=8, type="dynamic", block_sizes={-1: 64})],
            "max",
            "shape of a batch",
        ),
        ([entry("*weight_quantizer", num_bits=8, rotate=True)], "max", "sets rotate"),
        (
            [{"quantizer_name": "*weight_quantizer", "cfg": [{"num_bits": 4}, {"num_bits": 8}]}],
            "max",
            "sequence of quantizers",
        ),
        (
            [
                entry(
                    "*weight_quantizer",
                    num_bits=(2, 1),
                    block_sizes={-1: 16, "type": "static", "scale_bits": (4, 3)},
                )
            ],
            "max",
            "siblings share",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(tiny, entries, algorithm, reason):
    assert reason in ReplayEngine(tiny).refuses(user_config(entries, algorithm))


def test_every_built_in_config_can_be_replayed(tiny):
    engine = ReplayEngine(tiny)
    for combination in combinations(VOCABULARY):
        config = resolve(combination.pair, combination.granularity)
        assert engine.refuses(config) is None, combination.test_id


def test_a_users_awq_preset_is_left_to_stock(tiny):
    pair = QuantPair(
        name="awq",
        weight="int4",
        activation="fp16",
        format_name="INT4_AWQ_CFG",
        experimental=True,
        from_preset=True,
    )
    config = resolve(pair, Granularity(name="default"), load_preset(pair))
    assert "awq_lite" in ReplayEngine(tiny).refuses(config)


def test_a_tape_folder_is_filled_and_then_used(tiny, configs, swept, tmp_path):
    config = configs["wfp8_afp8-default"]
    seen = []
    for _ in range(2):
        engine = ReplayEngine(tiny, tape_folder=tmp_path)
        outcome = engine.score([config], batches(tiny), lambda phase, *_: seen.append(phase))
        assert outcome[config.digest].groups == swept[config.digest].groups
        seen.append("done")
    (kept,) = tmp_path.iterdir()
    assert re.fullmatch(r"tiny-qwen3-vl-small-[0-9a-f]{16}\.tape\.safetensors", kept.name)
    assert "capture" in seen[: seen.index("done")]
    assert "capture" not in seen[seen.index("done") :]


@pytest.fixture
def starved(monkeypatch):
    """Run out of memory for the first products: no GPU here is small enough."""

    def starve(failures):
        stock, calls = LinearScorer, []

        class Starved(LinearScorer):
            def __init__(self, plain, *arguments, **options):
                calls.append(len(plain))
                if len(calls) <= failures:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
                stock.__init__(self, plain, *arguments, **options)

        monkeypatch.setattr(replay, "LinearScorer", Starved)
        return calls

    return starve


def test_out_of_memory_is_tried_again_with_fewer_tokens_at_a_time(tiny, configs, swept, starved):
    calls = starved(1)
    config = configs["wfp8_afp8-default"]
    outcome = ReplayEngine(tiny).score([config], batches(tiny), ignore_progress)
    found = [group.score for group in outcome[config.digest].groups]
    expected = [group.score for group in swept[config.digest].groups]
    assert found == pytest.approx(expected, rel=TOLERANCE[tiny.record.dtype])
    assert calls[0] > replay.FEWER_TOKENS
    assert max(calls[1:]) <= replay.FEWER_TOKENS
    assert sum(calls[1:]) == calls[0] * len(tiny.linears)


def test_out_of_memory_for_good_is_an_error_with_the_sizes(tiny, configs, starved):
    calls = starved(10**6)
    config = configs["wfp8_afp8-default"]
    outcome = ReplayEngine(tiny).score([config], batches(tiny), ignore_progress)
    assert outcome[config.digest].reason.startswith("out of memory with the tape (up to ")
    assert "GiB) in host memory" in outcome[config.digest].reason
    assert "--aq-score-size" in outcome[config.digest].reason
    assert len(calls) == 3
