"""The frontier against its definition, taken literally."""

import pytest
from builders import results_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.reports.charts.grid import View
from pytest_autoquant.reports.charts.pareto import frontier

VIEW = View(model="toy", method="gradient", size="small")

numbers = st.sampled_from([1.0, 2.0, 3.0, 4.5]) | st.floats(
    min_value=0, exclude_min=True, max_value=1e300
)


@pytest.fixture(scope="session")
def frontier_of(case_of):
    """The frontier of one case per pair of bits and total score."""

    def build(points):
        cases = [
            case_of({"g": score}, pair=f"p{i}", effective_bits=bits, total_score=score)
            for i, (bits, score) in enumerate(points)
        ]
        return frontier(results_of(*cases), VIEW)

    return build


def beaten(one, by):
    (bits, score), (other_bits, other_score) = one, by
    no_more = other_bits <= bits and other_score <= score
    return no_more and (other_bits < bits or other_score < score)


@settings(deadline=None, max_examples=60)
@given(points=st.lists(st.tuples(numbers, numbers), max_size=15))
def test_best_cases_are_those_that_no_other_beats(frontier_of, points):
    found = frontier_of(points)
    assert {point.case.split("/")[1]: point.best for point in found} == {
        f"p{i}": not any(beaten(one, other) for other in points) for i, one in enumerate(points)
    }
    assert [point.bits for point in found] == sorted(bits for bits, _ in points)
    assert sorted((point.bits, point.score) for point in found) == sorted(points)
    kinds = {True: "not beaten", False: "beaten by another case"}
    assert [point.kind for point in found] == [kinds[point.best] for point in found]


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(4.0, 1.0), (4.0, 1.0)], [True, True]),
        ([(4.0, 2.0), (4.0, 1.0)], [True, False]),
        ([(8.0, 1.0), (4.0, 1.0)], [True, False]),
    ],
    ids=["equal", "lower score", "fewer bits"],
)
def test_tie_is_decided_by_the_other_number(frontier_of, points, best):
    assert [point.best for point in frontier_of(points)] == best


def test_point_has_a_description(case_of):
    (point,) = frontier(results_of(case_of({"a": 1.25})), VIEW)
    assert point.case == "toy/wint4_aint8/default/small/gradient"
    assert point.detail == "wint4_aint8, default: 1.25 per token at 4.25 bits per weight"


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "alias"},
        {"status": "failed"},
        {"fingerprint": None},
        {"effective_bits": None},
        {"total_score": None},
        {"total_score": 0.0},
        {"size": "large"},
        {"method": "kl_div"},
        {"model": "other"},
    ],
    ids=str,
)
def test_incomparable_case_is_left_out(case_of, changed):
    other = case_of({"a": 1e-9}, pair="other", **{"effective_bits": 1.0} | changed)
    found = frontier(results_of(case_of(), other), VIEW)
    assert [(point.case, point.best) for point in found] == [
        ("toy/wint4_aint8/default/small/gradient", True)
    ]
