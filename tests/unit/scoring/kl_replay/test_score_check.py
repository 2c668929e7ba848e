"""Scores beside the measured KL divergence, on the embedded model."""

import math
from dataclasses import dataclass, replace

import pytest
from builders import calibration_of, config_of, ignore_progress
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.models.registry import find_model
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.kl_replay.score_check import (
    ScoreChecks,
    checked_captions,
    not_checked,
)
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from scipy.stats import spearmanr

FP8, INT8 = config_of("wfp8_afp8"), config_of("wint8_aint8")


@pytest.fixture(scope="module")
def data(model):
    return calibration_of(model, score_size=3)


@pytest.fixture(scope="module")
def scored(model, data):
    return ReplayEngine(model).score([FP8, INT8], data, ignore_progress)


class Counting:
    """The KL engine, how many configs each of its sweeps had, and the ranges that it was given."""

    def __init__(self, model):
        self.model, self.sweeps, self.ranges = model, [], []

    def __call__(self, ranges):
        self.ranges.append(ranges)
        self.engine = KLReplayEngine(self.model, ranges=ranges)
        return self

    def score(self, configs, data, progress):
        self.sweeps.append(len(configs))
        return self.engine.score(configs, data, progress)


def test_check_compares_the_scores_with_the_kl_engine_in_one_sweep(model, data, scored):
    engine = Counting(model)
    checks, together = ScoreChecks(engine, ignore_progress), {FP8.digest: FP8, INT8.digest: INT8}
    found = {c: checks.check(together[c], scored[c], data, together) for c in together}
    assert engine.sweeps == [2]
    assert engine.ranges == [scored[FP8.digest].ranges] != [{}]
    measured = KLReplayEngine(model).score([FP8, INT8], data, ignore_progress)
    for config in (FP8, INT8):
        check, groups = found[config.digest], measured[config.digest].groups
        assert (check.captions, check.tokens) == (3, data.scored_tokens)
        kl = [group.score / data.scored_tokens for group in groups]
        assert [each.kl for each in check.groups.values()] == pytest.approx(kl, rel=1e-5)
        assert list(check.groups) == [group.name for group in scored[config.digest].groups]
        scores = [group.score for group in scored[config.digest].groups]
        assert check.spearman == pytest.approx(spearmanr(scores, kl).statistic)
        by_score, by_kl = (sorted(range(24), key=lambda i: -v[i])[:10] for v in (scores, kl))
        assert check.top_ten == len(set(by_score) & set(by_kl))
        # The jackknife: each caption is left out once.
        parts, tokens = groups[0].per_caption, data.scored_predictions
        without = [
            (sum(parts) - part) / (sum(tokens) - count)
            for part, count in zip(parts, tokens, strict=True)
        ]
        mean = sum(without) / 3
        error = math.sqrt(2 / 3 * sum((each - mean) ** 2 for each in without))
        assert next(iter(check.groups.values())).standard_error == pytest.approx(error, rel=1e-4)


def test_divergence_of_a_large_size_is_measured_on_its_first_captions(model):
    data = calibration_of(model, "medium")
    few = checked_captions(data)
    assert (data.num_score_samples, few.num_score_samples) == (128, 16)
    assert few.scored_digests == data.scored_digests[:16]
    longer = [replace(batch, rows=tuple(row * 10 for row in batch.rows)) for batch in data.scored]
    long = replace(data, scored=tuple(longer))
    fewer = checked_captions(long)
    assert fewer.scored_tokens <= 1024 < sum(long.scored_predictions[: fewer.num_score_samples + 1])


def test_single_caption_has_no_standard_error(model):
    data = calibration_of(model, score_size=1)
    found = ReplayEngine(model).score([FP8], data, ignore_progress)[FP8.digest]
    check = ScoreChecks(Counting(model), ignore_progress).check(FP8, found, data, {})
    assert check.captions == 1
    assert {group.standard_error for group in check.groups.values()} == {None}


@dataclass(frozen=True)
class Broken:
    """An engine that fails on this model."""

    error: Exception

    def score(self, configs, data, progress):
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            NotReplayableError("layer 0 does not run; use another"),
            "layer 0 does not run; use another",
        ),
        (RuntimeError("shape"), "RuntimeError: shape"),
    ],
)
def test_failure_of_the_check_loses_no_scores(data, scored, error, reason):
    checks = ScoreChecks(lambda ranges: Broken(error), ignore_progress)
    assert checks.check(FP8, scored[FP8.digest], data, {}) == reason


def test_scores_that_are_not_finite_cannot_be_checked(model, data, scored):
    measurement, groups = scored[FP8.digest], scored[FP8.digest].groups
    infinite = replace(measurement, groups=(replace(groups[0], score=math.inf), *groups[1:]))
    checks = ScoreChecks(Counting(model), ignore_progress)
    assert checks.check(FP8, infinite, data, {}) == (
        f"score or KL divergence is not finite in 1 group: {groups[0].name}"
    )


@pytest.mark.parametrize(
    ("wanted", "name", "size", "engine", "reason"),
    [
        (None, "tiny-qwen3-vl", "small", "replay", None),
        (None, "tiny-qwen2.5-vl", "small", "replay", None),
        (None, "tiny-qwen3-vl", "medium", "replay", "by default only the embedded models"),
        (None, "qwen3-vl-4b", "small", "replay", "by default only the embedded models"),
        (True, "qwen3-vl-4b", "large", "replay", None),
        (True, "tiny-qwen3-vl", "small", "modelopt", "stock AutoQuant scored the case"),
        (False, "tiny-qwen3-vl", "small", "replay", "switched off with --aq-no-check-scores"),
    ],
)
def test_small_size_of_embedded_models_is_checked_by_default(wanted, name, size, engine, reason):
    found = not_checked(wanted, find_model(name, random_weights=False), size, engine)
    assert found is None if reason is None else found.startswith(reason)
