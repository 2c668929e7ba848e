"""Size stability against scipy's rank correlation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.regression.comparison import spearman
from pytest_autoquant.reports.charts.size_stability import stability
from pytest_autoquant.reports.session_results import SessionResults
from scipy.stats import spearmanr

values = st.floats(0, 1e6, allow_subnormal=False) | st.sampled_from([0.0, 1.0, 2.0])


def found_in(*cases):
    return list(stability(SessionResults(cases={case.case_id: case for case in cases})))


@pytest.fixture(scope="session")
def sized(case_of):
    """A case of this size that scores its groups like this, in module order."""

    def build(size, scores, **given):
        return case_of({f"g{i}": score for i, score in enumerate(scores)}, size=size, **given)

    return build


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ([4, 3, 2, 1], [40, 30, 20, 10], 1.0),
        ([4, 3, 2, 1], [1, 2, 3, 4], -1.0),
        ([4, 3, 2, 1], [3, 4, 2, 1], 0.8),
        ([1, 1, 1], [1, 1, 1], 1.0),
        ([1, 1, 1], [1, 2, 3], 0.0),
        ([None, 2, 1], [3, 2, 1], 1.0),
        ([None, 2, 1], [0.5, 2, 1], -0.5),
        ([None, None, 1], [3, 3, 1], 1.0),
    ],
)
def test_known_orders_have_their_known_correlation(sized, small, large, expected):
    (point,) = found_in(sized("small", small), sized("large", large))
    assert point.spearman == expected


@settings(deadline=None, max_examples=200)
@given(pairs=st.lists(st.tuples(values, values), min_size=2, max_size=15))
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_correlation_is_that_of_scipy(sized, pairs):
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    (point,) = found_in(sized("small", before), sized("large", after))
    if len(set(before)) > 1 and len(set(after)) > 1:
        expected = spearmanr(before, after).statistic
        assert spearman(pairs) == pytest.approx(expected, abs=1e-12)
        assert point.spearman == pytest.approx(expected, abs=5.1e-5)
    else:
        assert point.spearman == (len(set(before)) == len(set(after)))


def test_every_two_sizes_are_compared_the_smaller_one_first(sized):
    points = found_in(*(sized(size, [1, 2]) for size in ("odd", "large", "small", "medium")))
    assert [point.sizes for point in points] == [
        "small and medium",
        "small and large",
        "small and odd",
        "medium and large",
        "medium and odd",
        "large and odd",
    ]


def test_point_has_a_description_and_opens_the_larger_case(sized):
    (point,) = found_in(sized("small", [3, 2, 1]), sized("medium", [3, 1, 2]))
    assert (point.model, point.method) == ("toy", "gradient")
    assert (point.pair, point.granularity) == ("wint4_aint8", "default")
    assert point.case == "toy/wint4_aint8/default/medium/gradient"
    assert point.detail == "wint4_aint8, default: 0.5000 between small and medium"


@pytest.mark.parametrize(
    "other", [{"model": "m"}, {"method": "kl_div"}, {"pair": "p"}, {"granularity": "g"}], ids=str
)
def test_only_sizes_of_the_same_case_are_compared(sized, other):
    assert found_in(sized("small", [1, 2]), sized("large", [1, 2], **other)) == []


@pytest.mark.parametrize("status", ["alias", "failed"])
def test_only_measured_cases_take_part(sized, status):
    assert found_in(sized("small", [1, 2]), sized("large", [1, 2], status=status)) == []


def test_only_groups_in_both_are_compared(case_of):
    small = case_of({"a": 3.0, "gone": 9.0, "b": 2.0, "c": 1.0}, size="small")
    large = case_of({"a": 3.0, "b": 1.0, "new": 9.0, "c": 2.0}, size="large")
    (point,) = found_in(small, large)
    assert point.spearman == 0.5


@pytest.mark.parametrize("names", [{"a": 1.0}, {"x": 1.0, "y": 2.0}, {}])
def test_fewer_than_two_common_groups_have_no_correlation(case_of, names):
    assert found_in(case_of({"a": 1.0, "b": 2.0}), case_of(names, size="large")) == []
