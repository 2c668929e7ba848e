"""What a manifest records of a measured whole model, from divergences given by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import config_of, ignore_progress
from pytest_autoquant.manifests.records.packed_scores import unpack_scores
from pytest_autoquant.scoring.engine import Failure, GroupScore, WholeModelDivergence
from pytest_autoquant.scoring.kl_replay import whole_model_kl
from pytest_autoquant.scoring.kl_replay.whole_model_kl import WholeModels

FP8, INT8 = config_of("wfp8_afp8"), config_of("wint8_aint8")
#: Scores of two groups by caption; three captions of ten predictions in all are scored.
GROUPS = ((4.0, 1.0, 1.0), (2.0, 3.0, 1.0))


@pytest.fixture
def measure(monkeypatch, measurement, data):
    """Record divergences by caption; returns the record and what was measured together."""
    calls = []

    def run(outcome, *, method="gradient", groups=GROUPS, all_captions=True):
        def measured(model, configs, data, progress, ranges):
            calls.append([config.digest for config in configs])
            return {config.digest: outcome for config in configs}

        monkeypatch.setattr(whole_model_kl, "measure_whole_model", measured)
        scored = [
            GroupScore(modules=(str(i),), score=sum(p), quantized=True, per_caption=p)
            for i, p in enumerate(groups)
        ]
        models = WholeModels(lambda: None, ignore_progress, all_captions=all_captions)
        together = {FP8.digest: FP8, INT8.digest: INT8}
        result = SimpleNamespace(groups=tuple(scored), ranges={})
        found = [models.measure(config, result, data, method, together) for config in (INT8, FP8)]
        assert found[0] == found[1]
        return found[0]

    run.calls = calls
    return run


def divergence(*per_caption):
    return WholeModelDivergence(per_caption=per_caption, seconds=2.5)


@pytest.mark.parametrize("method", ["gradient", "kl_div"])
def test_record_has_the_divergence_and_the_ratio_with_their_errors(measure, data, method):
    found = measure(divergence(3.0, 1.0, 2.0), method=method)
    assert measure.calls == [[INT8.digest, FP8.digest]]  # all together, once
    assert (found.captions, found.tokens, found.kl, found.seconds) == (3, 10, 0.6, 2.5)
    assert unpack_scores(found.caption_kl, 3) == (3.0, 1.0, 2.0)
    lengths = np.array(data.scored_predictions)
    kl, sums = np.array([3.0, 1.0, 2.0]), np.sum(GROUPS, axis=0)

    def jackknife(over, under):
        left_out = (over.sum() - over) / (under.sum() - under)
        return np.std(left_out) * math.sqrt(2)

    assert found.standard_error == pytest.approx(jackknife(kl, lengths), rel=1e-12)
    ratio, above, below = {"gradient": (2.0, sums, kl), "kl_div": (0.5, kl, sums)}[method]
    assert found.ratio_standard_error == pytest.approx(jackknife(above, below), rel=1e-12)
    ratios = {"gradient": found.score_per_kl, "kl_div": found.interaction_ratio}
    assert ratios == {"gradient": None, "kl_div": None} | {method: ratio}


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Failure(reason="out of memory", trace=""), "out of memory"),
        (divergence(1.0, math.nan, 1.0), "the KL divergence of the whole model is not finite"),
    ],
    ids=["failure", "not finite"],
)
def test_failure_is_the_reason_why_there_is_none(measure, outcome, reason):
    assert measure(outcome) == reason


def test_ratio_is_unknown_without_a_divergence_or_a_finite_score(measure):
    for found in (
        measure(divergence(0.0, 0.0, 0.0)),
        measure(divergence(1.0, 1.0, 1.0), groups=((0.0, 0.0, 0.0),), method="kl_div"),
        measure(divergence(1.0, 1.0, 1.0), groups=((1.0, math.inf, 1.0),)),
    ):
        ratios = (found.score_per_kl, found.interaction_ratio, found.ratio_standard_error)
        assert ratios == (None, None, None)
    assert found.standard_error is not None


def test_few_captions_are_measured_unless_all_are_asked_for(measure, data, monkeypatch):
    monkeypatch.setattr(whole_model_kl, "checked_captions", lambda data: data.scoring_first(2))
    found = measure(divergence(3.0, 1.0), all_captions=False)
    assert (found.captions, found.tokens) == (2, sum(data.scored_predictions[:2]))
    assert found.score_per_kl == (4.0 + 1.0 + 2.0 + 3.0) / 4.0


def test_sizes_that_measure_the_same_captions_share_what_calibration_does_not_change(
    monkeypatch, data
):
    """FP8 inputs are static; those of the other config are not quantized."""
    calls, unquantized = [], config_of("wint8_afp16")

    def measured(model, configs, data, progress, ranges):
        calls.append((ranges, [config.digest for config in configs]))
        return {config.digest: divergence(1.0, 2.0, float(len(calls))) for config in configs}

    monkeypatch.setattr(whole_model_kl, "measure_whole_model", measured)
    models = WholeModels(lambda: None, ignore_progress, all_captions=True)
    configs = {each.digest: each for each in (FP8, unquantized)}
    larger = replace(data, unscored=())
    found = []
    for size, ranges in ((data, "first"), (larger, "second")):
        result = SimpleNamespace(groups=(), ranges=ranges)
        found += [
            models.measure(each, result, size, "gradient", configs) for each in configs.values()
        ]
    assert calls == [("first", [*configs]), ("second", [FP8.digest])]
    assert [round(each.kl * 10) for each in found] == [4, 4, 5, 4]
