"""The reference engine on the embedded model."""

import io
import math
from dataclasses import replace

import pytest
from builders import awq_config, calibration_of, config_of, ignore_progress, model_state
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.stock.engine import StockEngine

LAYER = "model.language_model.layers.2"


def measure(engine, effective, data, progress=ignore_progress):
    (outcome,) = engine.score([effective], data, progress).values()
    if isinstance(outcome, Failure):
        raise AssertionError(outcome.trace)
    return outcome


def per_token(measurement, data):
    return {group.name: group.score / data.scored_tokens for group in measurement.groups}


def scores(tiny, effective, data, method="gradient"):
    return per_token(measure(StockEngine(tiny, method=method), effective, data), data)


@pytest.fixture(scope="module")
def data(tiny):
    return calibration_of(tiny, score_size=8)


@pytest.fixture(scope="module")
def few(tiny):
    """Four captions, which calibrate and are scored."""
    return replace(calibration_of(tiny, score_size=4), unscored=())


@pytest.fixture(scope="module")
def steps():
    """What ``measured`` reported as progress."""
    return []


@pytest.fixture(scope="module")
def measured(tiny, data, steps):
    """INT8 weights and activations, with ModelOpt's search state."""
    engine = StockEngine(tiny, method="gradient", save_state=True)
    return measure(engine, config_of("wint8_aint8"), data, lambda *step: steps.append(step))


def test_groups_are_modelopts_and_cover_every_linear(tiny, measured):
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


def test_progress_counts_batches_by_phase(measured, data, steps):
    calibrated, scored = len(data.batches), len(data.scored)
    assert steps == [
        *(("calibrate", done, calibrated) for done in range(calibrated)),
        *(("score", done, scored) for done in range(scored)),
    ]


def test_search_state_is_saved_on_request(measured):
    from modelopt.torch.utils.serialization import safe_load

    state = safe_load(io.BytesIO(measured.state))
    assert state["method"] == "gradient"
    assert f"{LAYER}.mlp.down_proj.quant_recipe" in state["candidate_stats"]


def test_score_is_the_squared_gradient_weighted_output_change(tiny):
    """INT8 weights per output channel, written out: scale amax / 127, round.

    bf16 weights often lie halfway between two codes; ModelOpt's order of operations then rounds
    either way, hence the tolerance.
    """
    name, data = f"{LAYER}.mlp.down_proj", calibration_of(tiny)
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
    found = scores(tiny, config_of("wint8_afp16"), data)[f"{name}.quant_recipe"]
    assert found == pytest.approx(expected / data.scored_tokens, rel=2e-3)


@pytest.mark.parametrize(
    ("pair", "granularity", "method"),
    [
        ("wfp8_afp8", "recipe_match_channel_token", "gradient"),
        ("wint4_afp16", "w_group64", "kl_div"),
    ],
)
def test_score_does_not_depend_on_the_batch_size(tiny, pair, granularity, method):
    small, large = (
        replace(calibration_of(tiny, batch_size=size, score_size=5), unscored=())
        for size in (1, 32)
    )
    assert len(small.scored) == 5 > len(large.scored)
    assert scores(tiny, config_of(pair, granularity), small, method) == pytest.approx(
        scores(tiny, config_of(pair, granularity), large, method), rel=1e-4
    )


def test_score_size_captions_are_scored_and_all_calibrate(tiny, measured, data):
    few = calibration_of(tiny, score_size=4)
    assert sum(len(batch.rows) for batch in few.scored) == 4
    assert sum(len(batch.rows) for batch in few.batches) == 16
    few_scores, all_scores = scores(tiny, config_of("wint8_aint8"), few), per_token(measured, data)
    assert few_scores.keys() == all_scores.keys()
    assert all(few_scores[name] != score for name, score in all_scores.items())


def test_activation_only_scores_are_not_clamped(tiny, few):
    """Both formats store 16 bits, so ModelOpt's ``min(score, previous)`` would give 0."""
    found = scores(tiny, config_of("wfp16_aint8"), few)
    assert min(found.values()) > 0


@pytest.mark.parametrize(
    ("effective", "method"),
    [(config_of("wint4_aint8"), "gradient"), (awq_config(), "kl_div")],
    ids=["max", "awq"],
)
def test_model_is_restored_bit_for_bit(tiny, few, effective, method):
    before = model_state(tiny.module)
    found = scores(tiny, effective, few, method)
    assert min(found.values()) > 0
    assert model_state(tiny.module) == before


def test_interrupted_measurement_restores_the_model(tiny, few):
    before = model_state(tiny.module)

    def interrupt(phase, done, total):
        if phase == "score":
            raise KeyboardInterrupt

    engine = StockEngine(tiny, method="gradient")
    with pytest.raises(KeyboardInterrupt):
        measure(engine, config_of("wint8_aint8"), few, interrupt)
    assert model_state(tiny.module) == before


def test_config_that_raises_fails_alone(tiny, few):
    broken, fine = config_of("wfp8_afp16"), config_of("wint8_afp16")
    broken.entries[1]["cfg"]["num_bits"] = -1
    before = model_state(tiny.module)
    outcomes = StockEngine(tiny, method="gradient").score([broken, fine], few, ignore_progress)
    assert outcomes[broken.digest].reason.startswith("ValidationError: ")
    assert len(outcomes[fine.digest].groups) == 24
    assert model_state(tiny.module) == before


def test_scores_of_a_model_with_nan_are_nan(tiny, few):
    norm = tiny.module.get_submodule(f"{LAYER}.input_layernorm")
    with preserved(norm, weights=True):
        norm.weight.data[0] = math.nan
        found = scores(tiny, config_of("wint8_afp16"), few)
    assert all(math.isnan(score) for score in found.values())
