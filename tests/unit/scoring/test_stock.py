"""The reference engine on the embedded model."""

import math

import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support.presets import load_preset
from pytest_autoquant.models.loading import load_model, preserved
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.stock import StockEngine

VOCABULARY = load_vocabulary()
LAYER = "model.language_model.layers.2"


def ignore_progress(phase, done, total):
    pass


@pytest.fixture(scope="module")
def tiny():
    return load_model(REGISTRY["tiny-qwen3-vl"], device=torch.device("cpu"), dtype=torch.float32)


def batches(tiny, batch_size=32, score_size=128, size="small"):
    captions = load_captions(None, size)
    return calibration_data(
        captions, tiny.tokenize(captions.lines), batch_size=batch_size, score_size=score_size
    )


def config(pair, granularity="default"):
    return resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])


def measure(engine, effective, data, progress=ignore_progress):
    (outcome,) = engine.score([effective], data, progress).values()
    if isinstance(outcome, Failure):
        raise AssertionError(outcome.trace)
    return outcome


def scores(tiny, effective, data, method="gradient"):
    measurement = measure(StockEngine(tiny, method=method), effective, data)
    return {group.name: group.score / data.scored_tokens for group in measurement.groups}


def test_groups_are_modelopts_decision_units_and_cover_every_linear(tiny):
    engine = StockEngine(tiny, method="gradient")
    measured = measure(engine, config("wint8_aint8"), batches(tiny))
    by_name = {group.name: group for group in measured.groups}
    assert by_name[f"{LAYER}.self_attn.q_proj.quant_recipe"].modules == (
        f"{LAYER}.self_attn.q_proj",
        f"{LAYER}.self_attn.k_proj",
        f"{LAYER}.self_attn.v_proj",
    )
    covered = [name for group in measured.groups for name in group.modules]
    assert sorted(covered) == sorted(linear.name for linear in tiny.linears)
    assert all(group.quantized for group in measured.groups)
    assert measured.quantizers["weight_quantizer"].startswith("8 bit fake")
    assert set(measured.timing) == {"prepare", "calibrate", "score"}


def test_the_score_is_the_squared_gradient_weighted_output_change_by_hand(tiny):
    """int8 weights per output channel, written out: scale amax / 127, round.

    bf16 weights fall on many near-ties of the rounding, which ModelOpt's own order of operations
    breaks either way: hence the tolerance.
    """
    data, name = batches(tiny), f"{LAYER}.mlp.down_proj"
    linear = tiny.module.get_submodule(name)
    weight = linear.weight.detach()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    change = (weight / scale).round() * scale - weight
    taped = {}

    def tape(_, inputs, output):
        taped["x"] = inputs[0].detach()
        output.register_hook(lambda gradient: taped.update(g=gradient))

    handle, expected = linear.register_forward_hook(tape), 0.0
    for batch in data.scored:
        ids = tiny.tensor(batch)
        next_token_loss(next_token_logits(tiny.module, ids), ids).backward()
        expected += float((taped["g"] * (taped["x"] @ change.T)).square().sum())
    handle.remove()
    tiny.module.zero_grad(set_to_none=True)
    found = scores(tiny, config("wint8_afp16"), data)[f"{name}.quant_recipe"]
    assert found == pytest.approx(expected / data.scored_tokens, rel=2e-3)


@pytest.mark.parametrize(
    ("pair", "granularity", "method"),
    [
        ("wint4_aint8", "default", "gradient"),
        ("wfp8_afp8", "recipe_match_channel_token", "gradient"),
        ("wint4_afp16", "w_group64", "kl_div"),
    ],
)
def test_the_score_does_not_move_between_batch_sizes(tiny, pair, granularity, method):
    found = [
        scores(tiny, config(pair, granularity), batches(tiny, batch_size), method)
        for batch_size in (1, 4, 32)
    ]
    assert len(batches(tiny, 1).scored) > len(batches(tiny, 32).scored)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)


def test_only_the_score_size_is_scored_but_every_caption_calibrates(tiny):
    few, all_of_them = batches(tiny, score_size=4), batches(tiny)
    assert sum(len(batch.rows) for batch in few.scored) == 4
    assert sum(len(batch.rows) for batch in few.batches) == 16
    per_token = scores(tiny, config("wint8_aint8"), few)
    assert per_token.keys() == scores(tiny, config("wint8_aint8"), all_of_them).keys()
    assert per_token != scores(tiny, config("wint8_aint8"), all_of_them)


def test_activation_only_scores_are_not_clamped_to_the_unquantized_score(tiny):
    """Both formats store 16 bits, so ModelOpt's ``min(score, previous)`` would give 0."""
    found = scores(tiny, config("wfp16_aint8"), batches(tiny))
    assert min(found.values()) > 0


def everything(module):
    ids = torch.arange(10, 30)[None]
    return {
        "outputs": module(input_ids=ids, use_cache=False).logits.detach().clone(),
        "parameters": [p.detach().clone() for p in module.parameters()],
        "identity": [id(p) for p in module.parameters()],
        "buffers": {name: b.clone() for name, b in module.named_buffers()},
        "classes": [type(child) for child in module.modules()],
        "attributes": [
            {k: v for k, v in child.__dict__.items() if isinstance(v, (bool, int, float, str))}
            for child in module.modules()
        ],
        "names": [list(child.__dict__) for child in module.modules()],
        "hooks": [
            (len(child._forward_hooks), len(child._forward_pre_hooks), len(child._backward_hooks))
            for child in module.modules()
        ],
        "grads": [(p.requires_grad, p.grad) for p in module.parameters()],
        "config": module.config.to_json_string(),
        "tied": module.lm_head.weight is module.get_input_embeddings().weight,
    }


def assert_same(before, after):
    assert torch.equal(before.pop("outputs"), after.pop("outputs"))
    for name in ("parameters", "buffers"):
        first, second = before.pop(name), after.pop(name)
        if isinstance(first, dict):
            assert first.keys() == second.keys()
            first, second = first.values(), second.values()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert before == after


AWQ = QuantPair(
    name="awq",
    weight="int4",
    activation="fp16",
    format_name="INT4_AWQ_CFG",
    experimental=True,
    from_preset=True,
)


@pytest.mark.parametrize("method", ["gradient", "kl_div"])
@pytest.mark.parametrize("pair", [VOCABULARY.pairs["wint4_aint8"], AWQ], ids=lambda p: p.name)
def test_the_model_is_restored_bit_for_bit(tiny, pair, method):
    plain = Granularity(name="default")
    effective = resolve(pair, plain, load_preset(pair) if pair.from_preset else None)
    before = everything(tiny.module)
    found = scores(tiny, effective, batches(tiny, score_size=4), method)
    assert min(found.values()) > 0
    assert_same(before, everything(tiny.module))


def test_a_failing_measurement_leaves_the_model_as_it_was(tiny):
    before = everything(tiny.module)

    def interrupt(phase, done, total):
        if phase == "score":
            raise KeyboardInterrupt

    engine = StockEngine(tiny, method="gradient")
    with pytest.raises(KeyboardInterrupt):
        measure(engine, config("wint8_aint8"), batches(tiny), interrupt)
    assert_same(before, everything(tiny.module))


def test_a_config_that_modelopt_cannot_run_is_its_own_outcome(tiny):
    engine, data = StockEngine(tiny, method="gradient"), batches(tiny, score_size=4)
    broken, fine = config("wfp8_afp16"), config("wint8_afp16")
    broken.entries[1]["cfg"]["num_bits"] = -1
    before = everything(tiny.module)
    outcomes = engine.score([broken, fine], data, ignore_progress)
    assert outcomes[broken.digest].reason.startswith("ValidationError: ")
    assert len(outcomes[fine.digest].groups) == 24
    assert_same(before, everything(tiny.module))


def test_progress_names_phases_and_batches(tiny):
    seen = []
    data = batches(tiny)
    engine = StockEngine(tiny, method="gradient")
    measure(engine, config("wint8_aint8"), data, lambda *step: seen.append(step))
    assert [step[0] for step in seen] == ["calibrate"] * len(data.batches) + ["score"] * len(
        data.scored
    )
    assert seen[0] == ("calibrate", 0, len(data.batches))
    assert seen[-1] == ("score", len(data.scored) - 1, len(data.scored))


def test_a_broken_model_gives_scores_that_are_not_finite(tiny):
    norm = tiny.module.get_submodule(f"{LAYER}.input_layernorm")
    with preserved(norm, weights=True):
        norm.weight.data[0] = math.nan
        found = scores(tiny, config("wint8_afp16"), batches(tiny, score_size=4))
    assert all(math.isnan(score) for score in found.values())


def test_the_search_state_is_saved_on_request(tiny):
    import io

    from modelopt.torch.utils.serialization import safe_load

    engine = StockEngine(tiny, method="gradient", save_state=True)
    saved = measure(engine, config("wint8_aint8"), batches(tiny)).state
    state = safe_load(io.BytesIO(saved))
    assert state["method"] == "gradient"
    assert f"{LAYER}.mlp.down_proj.quant_recipe" in state["candidate_stats"]
