"""The frontier against its definition, taken literally."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.reports.charts.grid import View
from pytest_autoquant.reports.charts.pareto import frontier
from pytest_autoquant.reports.session_results import SessionResults

VIEW = View(model="toy", method="gradient", size="small")

few = st.sampled_from([1.0, 2.0, 3.0, 4.5])
anything = st.floats(min_value=0, exclude_min=True, max_value=1e300)


def session(cases):
    return SessionResults(cases={case.case_id: case for case in cases})


@pytest.fixture(scope="session")
def cases_of(case_of):
    """One case per pair of bits and total score."""

    def build(points):
        return [
            case_of({"g": score}, pair=f"p{i}", effective_bits=bits, total_score=score)
            for i, (bits, score) in enumerate(points)
        ]

    return build


def beaten(one, by):
    (bits, score), (other_bits, other_score) = one, by
    no_more = other_bits <= bits and other_score <= score
    return no_more and (other_bits < bits or other_score < score)


@settings(deadline=None, max_examples=200)
@given(points=st.lists(st.tuples(few | anything, few | anything), max_size=25))
def test_best_cases_are_those_that_no_other_beats(cases_of, points):
    found = frontier(session(cases_of(points)), VIEW)
    best = {point.case.split("/")[1]: point.best for point in found}
    assert best == {
        f"p{i}": not any(beaten(one, other) for other in points) for i, one in enumerate(points)
    }


@settings(deadline=None, max_examples=50)
@given(points=st.lists(st.tuples(few, few), max_size=15))
def test_points_come_by_bits_and_show_their_own_numbers(cases_of, points):
    found = frontier(session(cases_of(points)), VIEW)
    assert [point.bits for point in found] == sorted(bits for bits, _ in points)
    assert sorted((point.bits, point.score) for point in found) == sorted(points)
    kinds = {True: "not beaten", False: "beaten by another case"}
    assert [point.kind for point in found] == [kinds[point.best] for point in found]


def test_equal_cases_do_not_beat_each_other(cases_of):
    found = frontier(session(cases_of([(4.0, 1.0), (4.0, 1.0)])), VIEW)
    assert [point.best for point in found] == [True, True]


def test_lower_score_wins_at_equal_bits(cases_of):
    found = frontier(session(cases_of([(4.0, 2.0), (4.0, 1.0)])), VIEW)
    assert [(point.score, point.best) for point in found] == [(1.0, True), (2.0, False)]


def test_fewer_bits_win_at_equal_scores(cases_of):
    found = frontier(session(cases_of([(8.0, 1.0), (4.0, 1.0)])), VIEW)
    assert [(point.bits, point.best) for point in found] == [(4.0, True), (8.0, False)]


def test_point_has_a_description(case_of):
    (point,) = frontier(session([case_of({"a": 1.25})]), VIEW)
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
        {"total_score": -1.0},
        {"size": "large"},
        {"method": "kl_div"},
        {"model": "other"},
    ],
    ids=str,
)
def test_incomparable_case_is_left_out(case_of, changed):
    other = case_of({"a": 1e-9}, pair="other", **{"effective_bits": 1.0} | changed)
    found = frontier(session([case_of(), other]), VIEW)
    assert [(point.case, point.best) for point in found] == [
        ("toy/wint4_aint8/default/small/gradient", True)
    ]


def test_empty_session_has_no_frontier():
    assert frontier(SessionResults(), VIEW) == ()
