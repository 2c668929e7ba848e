"""Error bars over captions: their formulas, and how often they cover what they promise."""

import numpy as np
import pytest
from builders import covered
from pytest_autoquant.manifests.uncertainty import (
    CaptionSample,
    group_uncertainties,
    ratio_error,
    score_differences,
    student_t,
)
from scipy.stats import t as student


def sample_of(scores, predictions=None, captions=None):
    count = len(scores[0])
    return CaptionSample(
        captions=captions or [str(index) for index in range(count)],
        predictions=predictions or [1] * count,
        scores=scores,
    )


def test_standard_error_is_the_jackknifes():
    """With equal lengths the ratio is a mean, of which it is the sample deviation / sqrt(n)."""
    scores = [[1.0, 2.0, 4.0, 9.0]]
    (found,) = group_uncertainties(sample_of(scores))
    assert found.standard_error == pytest.approx(np.std(scores, ddof=1) / 2, rel=1e-12)
    predictions = [3, 5, 2, 7]
    left_out = [
        (16 - score) / (17 - length) for score, length in zip(scores[0], predictions, strict=True)
    ]
    (found,) = group_uncertainties(sample_of(scores, predictions))
    assert found.standard_error == pytest.approx(np.std(left_out) * np.sqrt(3), rel=1e-12)


def test_error_of_a_ratio_is_the_jackknifes():
    above, below = [1.0, 2.0, 4.0, 9.0], [2.0, 1.0, 5.0, 6.0]
    left_out = [(16 - a) / (14 - b) for a, b in zip(above, below, strict=True)]
    expected = np.std(left_out) * np.sqrt(3)
    assert ratio_error(above, below) == pytest.approx(expected, rel=1e-12)
    assert ratio_error(above, [2 * each for each in above]) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("above", "below"),
    [([1.0], [2.0]), ([1.0, 2.0], [0.0, 3.0]), ([1.0, float("nan")], [1.0, 2.0])],
)
def test_ratio_of_one_caption_or_without_a_rest_has_no_error(above, below):
    assert ratio_error(above, below) is None


@pytest.mark.parametrize(("degrees", "relative"), [(1, 1e-5), (2, 1e-4), (3, 1e-2), (15, 1e-4)])
def test_students_t(degrees, relative):
    assert student_t(degrees) == pytest.approx(student.ppf(0.975, degrees), rel=relative)


def test_ties_share_their_ranks_and_clear_orders_have_one():
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 0.1, (5, 64))
    groups = [10 + noise[0], 5 + noise[1], 5 + noise[2], 5 + noise[3], noise[4] + 1]
    found = group_uncertainties(sample_of([list(group) for group in groups]))
    assert [each.rank_interval for each in found] == [(1, 1), (2, 4), (2, 4), (2, 4), (5, 5)]


def test_what_captions_do_to_all_groups_alike_is_no_noise_between_them():
    """Scores of a caption vary tenfold, but every caption orders the two groups the same way."""
    size = np.random.default_rng(0).uniform(1, 10, 32)
    found = group_uncertainties(sample_of([list(1.05 * size), list(size), [0.0] * 32, [0.0] * 32]))
    assert [each.rank_interval for each in found] == [(1, 1), (2, 2), (3, 4), (3, 4)]
    assert found[0].standard_error > 0.05
    assert found[2].standard_error == 0.0


def test_top_ten_probability():
    generator = np.random.default_rng(2)
    means = [9.0] * 9 + [5.0, 5.0] + [1.0] * 4
    scores = [list(mean + generator.normal(0, 0.1, 40)) for mean in means]
    found = [each.top_ten_probability for each in group_uncertainties(sample_of(scores))]
    assert found[:9] == [1.0] * 9
    assert found[11:] == [0.0] * 4
    assert 0.0 < found[9] < 1.0
    assert sum(found) == pytest.approx(10)


@pytest.mark.parametrize("scores", [[[1.0]], [[1.0, float("nan")]], []])
def test_one_caption_or_a_broken_score_has_no_error_bars(scores):
    sample = CaptionSample(
        captions=("a", "b")[: len(scores[0]) if scores else 2], predictions=(1, 1), scores=scores
    )
    assert group_uncertainties(sample) == ()


def test_differences_are_paired_by_caption():
    size = np.random.default_rng(0).uniform(1, 10, 32)
    first = sample_of([list(size), list(size)])
    order = list(range(31, -1, -1))
    second = CaptionSample(
        captions=[str(index) for index in order],
        predictions=[1] * 32,
        scores=[list(1.05 * size[order]), list(size[order])],
    )
    larger, same = score_differences(first, second)
    assert larger.value == pytest.approx(0.05 * size.mean())
    assert larger.is_beyond_noise
    assert (same.value, same.is_beyond_noise) == (pytest.approx(0.0), False)
    disjoint = CaptionSample(
        captions=[f"other {index}" for index in order], predictions=[1] * 32, scores=second.scores
    )
    apart = score_differences(first, disjoint)[0]
    one, other = (group_uncertainties(each)[0].standard_error for each in (first, second))
    assert apart.standard_error == pytest.approx(np.hypot(one, other))
    assert not apart.is_beyond_noise


@pytest.mark.parametrize("count", [16, 128])
def test_intervals_cover_the_population(count):
    """Synthetic captions: lognormal sizes that all groups share, and noise of each group.

    Twelve groups within 10% contest their ranks; the others' are certain.
    """
    generator = np.random.default_rng(4)
    predictions = generator.integers(8, 40, 2000)
    means = np.concatenate([np.linspace(1.0, 1.1, 12), [3.0, 6.0]])
    noise = generator.lognormal(0.0, 0.4, (len(means), 2000))
    scores = means[:, None] * noise * generator.lognormal(0.0, 0.4, 2000) * predictions
    in_score, in_rank = covered(scores, predictions, count)
    assert 0.90 <= in_score <= 0.99
    assert 0.90 <= in_rank[:12].mean() <= 0.99
    assert in_rank[:12].min() >= 0.88


def test_intervals_of_differences_cover_the_population():
    """Two cases whose scores of a caption share its size, a hundred times drawn anew."""
    generator = np.random.default_rng(5)
    size = generator.lognormal(0.0, 0.6, 2000)
    population = size * generator.lognormal(0.0, 0.2, (2, 20, 2000))
    true = population[1].mean(1) - population[0].mean(1)
    inside = []
    for _ in range(100):
        drawn = generator.integers(0, 2000, 32)
        first, second = (sample_of(population[case][:, drawn].tolist()) for case in (0, 1))
        found = score_differences(first, second)
        inside += [abs(d.value - t) <= d.noise for d, t in zip(found, true, strict=True)]
    assert 0.90 <= np.mean(inside) <= 0.99
