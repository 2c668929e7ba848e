"""Rank correlation, by definition and compared with scipy."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.manifests.ranks import places, spearman
from scipy.stats import rankdata, spearmanr

scores = st.floats(0, 1e6, allow_subnormal=False)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # 1 - 6 * sum(d^2) / (n * (n^2 - 1)), with d = 1, -1, 0, 0.
        ((4.0, 3.0, 2.0, 1.0), (3.0, 40.0, 2.0, 1.0), 1 - 6 * 2 / (4 * 15)),
        ((3.0, 2.0, 1.0), (1.0, 5.0, 9.0), -1),
        # A score that is not finite ranks above all others: d = 2, -1, -1.
        ((None, 2.0, 1.0), (0.5, 2.0, 1.0), 1 - 6 * 6 / (3 * 8)),
        ((1.0, 1.0), (1.0, 2.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1),
        ((1.0,), (0.0,), 1),
        ((1.0,), (None,), 1),
        ((), (), 1),
    ],
)
def test_rank_correlation(before, after, expected):
    assert spearman(list(zip(before, after, strict=True))) == pytest.approx(expected)


def test_rank_correlation_of_the_same_order_is_exactly_one():
    """Else no case could meet ``--aq-tol-spearman 1``."""
    for count in range(2, 40):
        assert spearman([(1.0 + i, 3.7 * (1 + i) ** 2) for i in range(count)]) == 1.0, count


@settings(deadline=None, max_examples=100)
@given(
    pairs=st.lists(
        st.tuples(st.none() | scores | st.sampled_from([1.0, 2.0]), st.none() | scores),
        min_size=2,
        max_size=15,
    )
)
def test_rank_correlation_equals_scipy(pairs):
    before, after = (
        [math.inf if pair[side] is None else pair[side] for pair in pairs] for side in (0, 1)
    )
    if len(set(before)) > 1 and len(set(after)) > 1:
        expected = spearmanr(rankdata(before), rankdata(after)).statistic
        assert spearman(pairs) == pytest.approx(expected, abs=1e-12)
    else:
        assert spearman(pairs) == (len(set(before)) == len(set(after)))


def test_places_start_with_the_highest_score_and_ties_keep_their_order():
    assert places({"a": 1.0, "b": 3.0, "c": 1.0}) == {"b": 1, "a": 2, "c": 3}
