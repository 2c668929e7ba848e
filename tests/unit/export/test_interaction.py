"""Groups quantized alone, beside the scheme as a whole, on the embedded model."""

from dataclasses import replace

import numpy as np
import pytest
from builders import ignore_progress
from pytest_autoquant.allocation.scheme import allocation_of
from pytest_autoquant.calibration.captions import load_held_out
from pytest_autoquant.export.apply_scheme import GroupFormat, applied
from pytest_autoquant.export.damage import measure_damage
from pytest_autoquant.export.held_out import HeldOut
from pytest_autoquant.export.interaction import groups_alone
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from scheme_model import choice_of, mine

CANDIDATES = ("wint8_aint8", "wfp8_afp8")


@pytest.fixture(scope="module")
def choice(bench):
    """Attention in INT8 with static ranges, the other groups in FP8, the last one unquantized."""
    found = choice_of(bench, mine(*CANDIDATES, amount=8.5))
    places = [0 if "self_attn" in group.name else 1 for group in found.groups]
    return _with(found, [*places[:-1], None])


def _with(choice, chosen):
    return replace(choice, allocation=allocation_of(choice.groups, chosen))


@pytest.fixture(scope="module")
def alone(choice, held):
    return groups_alone(choice, held.alone("small", choice.configs), held.data)


def measured_alone(bench, held, modules, config):
    """The damage with one group quantized by ModelOpt, calibrated on the calibration captions."""
    formats = [GroupFormat(modules=modules, config=config)]
    with applied(bench.model, formats, bench.data("small").batches):
        return measure_damage(bench.model, held.data.captions, held.data.batches)


@pytest.mark.parametrize("place", [0, 1, 2, 3, 12, 22])
def test_divergence_of_a_group_is_that_of_applying_it_alone(bench, choice, held, alone, place):
    config = choice.configs[choice.allocation.chosen[place]]
    applied_alone = measured_alone(bench, held, choice.modules[place], config)
    assert alone.kl[place] == pytest.approx(applied_alone.kl, rel=1e-3)
    score = held.alone("small", [config])[config.digest].groups[place]
    by_caption = np.array(score.per_caption)
    np.testing.assert_allclose(by_caption, applied_alone.by_caption, rtol=5e-2, atol=1e-6)


def test_held_out_captions_would_calibrate_to_other_divergences(bench, choice, held):
    """Their inputs have other ranges, so the test above sees which captions calibrate."""
    config = choice.configs[0]
    engine = KLReplayEngine(bench.model, is_fused=True)
    by_themselves = engine.score([config], held.data, ignore_progress)[config.digest]
    found = held.alone("small", [config])[config.digest]
    different = [
        abs(group.score / other.score - 1) > 0.05
        for group, other in zip(found.groups, by_themselves.groups, strict=True)
    ]
    assert sum(different) >= 3


def test_ratio_is_that_of_the_scheme_to_the_sum_with_the_jackknifes_error(choice, held, alone):
    damage = held.damage("small", choice.formats)
    found = alone.interaction(damage)
    quantized = [kl for kl in alone.kl if kl is not None]
    assert len(quantized) == len(choice.groups) - 1
    assert alone.kl[-1] is None
    assert found.sum_kl == pytest.approx(sum(quantized), rel=1e-12)
    assert found.ratio == pytest.approx(damage.kl / sum(quantized), rel=1e-12)
    assert 0.5 < found.ratio < 2
    whole, parts = np.array(damage.by_caption), np.array(alone.by_caption)
    left_out = (whole.sum() - whole) / (parts.sum() - parts)
    error = np.std(left_out) * np.sqrt(len(whole) - 1)
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert 1e-3 < found.standard_error < 0.2


def test_without_a_quantized_group_there_is_no_ratio(choice, held):
    nothing = _with(choice, [None] * len(choice.groups))
    alone = groups_alone(nothing, {}, held.data)
    found = alone.interaction(held.damage("small", ()))
    assert (found.sum_kl, found.ratio) == (0.0, None)
    assert found.not_measured == "no group is quantized, or none changes a prediction"


def test_config_that_cannot_be_replayed_gives_its_reason(choice, held):
    failure = Failure(reason="calibration algorithm awq_lite needs more", trace="")
    alone = groups_alone(choice, {c.digest: failure for c in choice.configs}, held.data)
    found = alone.interaction(held.damage("small", choice.formats))
    assert (found.ratio, found.not_measured) == (None, failure.reason)
    assert all(kl is None for kl in alone.kl)


def test_model_that_cannot_be_replayed_is_a_failure_of_every_config(
    bench, choice, held, monkeypatch
):
    monkeypatch.setattr(type(bench.model.module), "get_decoder", lambda self: self.lm_head)
    outcomes = bench.damage_of_groups(choice.configs, held.data, "small")
    assert set(outcomes) == {config.digest for config in choice.configs}
    for outcome in outcomes.values():
        assert "do not all lie in one list of decoder layers" in outcome.reason


def test_nothing_is_measured_twice(bench, choice, monkeypatch):
    held = HeldOut(bench, load_held_out(None))
    calls = []
    monkeypatch.setattr(
        bench,
        "damage_of_groups",
        lambda configs, *_: (
            calls.append(len(configs)) or {c.digest: Failure(reason="x", trace="") for c in configs}
        ),
    )
    held.alone("small", choice.configs[:1])
    held.alone("small", choice.configs)
    held.alone("small", choice.configs)
    assert calls == [1, 1]
