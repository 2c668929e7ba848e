"""A scheme's decisions on the embedded model: exactly those, undone bit for bit, and measured."""

import fnmatch

import numpy as np
import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions, load_held_out
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.export.apply_scheme import (
    Damage,
    Decision,
    _bypassed,
    applied,
    damage,
    explicit_config,
    shared_range,
)
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import REGISTRY

VOCABULARY = load_vocabulary()
LAYER = "model.language_model.layers.0"
QKV = tuple(f"{LAYER}.self_attn.{each}_proj" for each in "qkv")
OUT = (f"{LAYER}.self_attn.o_proj",)
GATE_UP = (f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny():
    return load_model(REGISTRY["tiny-qwen3-vl"], device=torch.device("cpu"), dtype=torch.float32)


def batches_of(model, captions, count):
    lines = captions.lines[:count]
    data = calibration_data(captions, model.tokenize(lines), batch_size=8, score_size=count)
    return data.batches


@pytest.fixture(scope="module")
def calibration(tiny):
    return batches_of(tiny, load_captions(None, "small"), 8)


@pytest.fixture(scope="module")
def held_out(tiny):
    return batches_of(tiny, load_held_out(None), 12)


def decision(pair, modules, granularity="default"):
    config = resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
    return Decision(modules=modules, config=config)


MIXTURE = (decision("wfp8_afp8", QKV), decision("wint4_afp16", GATE_UP))


def snapshot(module):
    """Everything that makes a model what it is: by identity, and its values bit for bit."""
    parts = {
        name: (type(part), {key: id(value) for key, value in vars(part).items()})
        for name, part in module.named_modules()
    }
    held = {
        name: [(key, id(value)) for key, value in vars(part).items() if isinstance(value, dict)]
        + [sorted(map(str, value)) for value in vars(part).values() if isinstance(value, dict)]
        for name, part in module.named_modules()
    }
    weights = {
        name: (id(p), p.requires_grad, p.grad is None, p.detach().numpy().tobytes())
        for name, p in module.named_parameters(remove_duplicate=False)
    }
    buffers = {name: b.numpy().tobytes() for name, b in module.named_buffers()}
    return parts, held, weights, buffers, dict(vars(module.config))


def quantizers(module):
    from modelopt.torch.quantization.nn import TensorQuantizer

    return {n: part for n, part in module.named_modules() if isinstance(part, TensorQuantizer)}


def logits_of(model, batches):
    with torch.no_grad():
        return [
            model.module(input_ids=model.tensor(batch), use_cache=False).logits[:, :-1].numpy()
            for batch in batches
        ]


# The config


def test_a_config_names_every_quantizer_and_no_pattern_but_the_first():
    found = explicit_config(MIXTURE)
    assert found["algorithm"] == "max"
    first, *entries = found["quant_cfg"]
    assert first == {"quantizer_name": "*", "enable": False}
    fp8 = {"num_bits": (4, 3), "axis": None}
    int4 = {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}
    assert entries == [
        *({"quantizer_name": f"{name}.weight_quantizer", "cfg": fp8} for name in QKV),
        *({"quantizer_name": f"{name}.input_quantizer", "cfg": fp8} for name in QKV),
        *({"quantizer_name": f"{name}.weight_quantizer", "cfg": int4} for name in GATE_UP),
    ]


def test_no_name_in_a_config_matches_another_module(tiny):
    """Layer 1 is not layer 11, and ModelOpt reads names as patterns."""
    names = [f"{name}.weight_quantizer" for name, _ in tiny.module.named_modules()]
    for entry in explicit_config(MIXTURE)["quant_cfg"][1:]:
        matched = [name for name in names if fnmatch.fnmatch(name, entry["quantizer_name"])]
        assert len(matched) <= 1


def test_a_config_of_no_decision_switches_everything_off():
    assert explicit_config(()) == {
        "quant_cfg": [{"quantizer_name": "*", "enable": False}],
        "algorithm": "max",
    }


@pytest.mark.parametrize("algorithm", ["awq_lite", {"method": "smoothquant"}])
def test_a_calibration_that_would_change_weights_is_refused(algorithm):
    plain = decision("wint4_afp16", OUT)
    object.__setattr__(plain.config, "algorithm", algorithm)
    with pytest.raises(MeasurementError) as caught:
        explicit_config([plain])
    assert str(caught.value) == (
        f"wint4_afp16 calibrates by {algorithm}; a scheme takes pairs that calibrate by max"
    )


# Applied and undone


def test_only_what_is_decided_is_quantized(tiny, calibration):
    with applied(tiny, MIXTURE, calibration):
        enabled = {name for name, q in quantizers(tiny.module).items() if q.is_enabled}
    assert enabled == {
        *(f"{name}.weight_quantizer" for name in (*QKV, *GATE_UP)),
        *(f"{name}.input_quantizer" for name in QKV),
    }


@pytest.mark.parametrize("decisions", [(), MIXTURE], ids=["nothing", "mixture"])
def test_the_model_is_afterwards_what_it_was(tiny, calibration, decisions):
    before = snapshot(tiny.module)
    with applied(tiny, decisions, calibration):
        assert bool(quantizers(tiny.module)) == bool(decisions)
    assert snapshot(tiny.module) == before
    assert tiny.module.lm_head.weight is tiny.module.get_input_embeddings().weight


def test_the_model_is_what_it_was_also_after_an_exception_inside(tiny, calibration):
    before = snapshot(tiny.module)
    with pytest.raises(ZeroDivisionError), applied(tiny, MIXTURE, calibration):
        raise ZeroDivisionError
    assert snapshot(tiny.module) == before


def test_the_model_is_what_it_was_also_when_calibration_fails(tiny, calibration):
    before = snapshot(tiny.module)
    broken = [*calibration[:1], object()]
    with pytest.raises(AttributeError), applied(tiny, MIXTURE, broken):
        pytest.fail("it was calibrated")
    assert snapshot(tiny.module) == before


def test_applying_again_after_undoing_gives_the_same_bits(tiny, calibration, held_out):
    found = []
    for _ in range(2):
        with applied(tiny, MIXTURE, calibration):
            found.append(logits_of(tiny, held_out[:1])[0].tobytes())
    assert found[0] == found[1] != logits_of(tiny, held_out[:1])[0].tobytes()


# One scale per tensor and group


def test_siblings_with_one_scale_each_share_the_largest_range(tiny, calibration):
    largest = {n: tiny.module.get_submodule(n).weight.abs().max().item() for n in (*QKV, *OUT)}
    assert len({largest[name] for name in QKV}) > 1
    decisions = [decision("wfp8_afp8", QKV), decision("wfp8_afp8", OUT)]
    with applied(tiny, decisions, calibration):
        found = {
            name: tiny.module.get_submodule(name).weight_quantizer.amax for name in (*QKV, *OUT)
        }
    assert {found[name].item() for name in QKV} == {max(largest[name] for name in QKV)}
    assert found[OUT[0]].item() == largest[OUT[0]]
    assert {amax.shape for amax in found.values()} == {torch.Size([])}
    assert shared_range(tiny, decisions[0]).item() == max(largest[name] for name in QKV)


@pytest.mark.parametrize(
    ("pair", "granularity"),
    [("wint8_afp16", "default"), ("wint4_afp16", "default"), ("wfp8_afp8", "w_per_out_channel")],
)
def test_siblings_with_finer_scales_keep_their_own_ranges(tiny, calibration, pair, granularity):
    one = decision(pair, QKV, granularity)
    assert shared_range(tiny, one) is None
    with applied(tiny, [one], calibration):
        for name in QKV:
            linear = tiny.module.get_submodule(name)
            width = 1 if "int4" not in pair else 128
            rows = linear.weight.detach().abs()
            own = rows.reshape(-1, rows.shape[1] if width == 1 else width).amax(1)
            assert torch.equal(linear.weight_quantizer.amax.flatten(), own)


def test_activations_alone_have_no_range_of_weights(tiny):
    assert shared_range(tiny, decision("wfp16_afp8", QKV)) is None


# Damage


def test_no_decision_does_no_damage(tiny, calibration, held_out):
    with applied(tiny, (), calibration):
        found = damage(tiny, held_out)
    assert (found.kl, found.agreement) == (0.0, 1.0)
    assert found.loss == found.loss_before
    assert found.num_tokens == sum(len(row) - 1 for b in held_out for row in b.rows)


def by_hand(plain, quantized, batches):
    """The same quantities in numpy, from logits ``(captions, tokens - 1, vocabulary)``."""

    def log_softmax(logits):
        logits = logits.astype(np.float64)
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    kl, loss, before, same = [], [], [], []
    for a, b, batch in zip(plain, quantized, batches, strict=True):
        p, q = log_softmax(a), log_softmax(b)
        kl.append((np.exp(p) * (p - q)).sum(-1).ravel())
        for i, row in enumerate(batch.rows):
            loss += [-q[i, t, token] for t, token in enumerate(row[1:])]
            before += [-p[i, t, token] for t, token in enumerate(row[1:])]
        same.append((a.argmax(-1) == b.argmax(-1)).ravel())
    return (
        np.concatenate(kl).mean(),
        np.mean(loss),
        np.mean(before),
        np.concatenate(same).mean(),
        len(loss),
    )


def test_damage_is_that_of_two_forward_passes(tiny, calibration, held_out):
    plain = logits_of(tiny, held_out)
    with applied(tiny, MIXTURE, calibration):
        quantized = logits_of(tiny, held_out)
        found = damage(tiny, held_out)
    kl, loss, before, agreement, count = by_hand(plain, quantized, held_out)
    assert 1e-5 < kl < 1
    assert found.kl == pytest.approx(kl, rel=1e-9)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.loss_before == pytest.approx(before, rel=1e-12)
    assert found.agreement == pytest.approx(agreement, rel=1e-12)
    assert 0.5 < found.agreement < 1
    assert found.num_tokens == count


def test_damage_does_not_depend_on_the_batches(tiny, calibration, held_out):
    one_by_one = [part for batch in held_out for part in batch.split(1)]
    with applied(tiny, MIXTURE, calibration):
        together, alone = damage(tiny, held_out), damage(tiny, one_by_one)
    assert alone.kl == pytest.approx(together.kl, rel=1e-3)
    assert alone.loss == pytest.approx(together.loss, rel=1e-6)
    assert isinstance(alone, Damage)


def test_coarser_weights_do_more_damage(tiny, calibration, held_out):
    found = []
    for pair in ("wint8_afp16", "wfp8_afp16", "wint4_afp16"):
        with applied(tiny, [decision(pair, QKV), decision(pair, GATE_UP)], calibration):
            found.append(damage(tiny, held_out).kl)
    assert found == sorted(found)
    assert found[0] > 0


def test_quantizers_are_switched_off_only_for_a_while_and_only_those_that_are_on(
    tiny, calibration, held_out
):
    plain = logits_of(tiny, held_out[:1])[0]
    with applied(tiny, MIXTURE, calibration):
        before = {name: q.is_enabled for name, q in quantizers(tiny.module).items()}
        with _bypassed(tiny.module):
            assert not any(q.is_enabled for q in quantizers(tiny.module).values())
            assert np.array_equal(logits_of(tiny, held_out[:1])[0], plain)
        assert {name: q.is_enabled for name, q in quantizers(tiny.module).items()} == before
        with pytest.raises(ZeroDivisionError), _bypassed(tiny.module):
            raise ZeroDivisionError
        assert {name: q.is_enabled for name, q in quantizers(tiny.module).items()} == before
        assert not np.array_equal(logits_of(tiny, held_out[:1])[0], plain)
