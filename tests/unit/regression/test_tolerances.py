"""Tolerances of the regression gate, and the drifts that exceed them."""

import math
from dataclasses import replace

import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.regression.comparison import compare
from pytest_autoquant.regression.tolerances import Tolerances, check_marker, find_drifts

LOOSE = Tolerances(spearman=-1.0, top_ten=0.0, total=math.inf, group=math.inf, selected=10**6)
STRICT = Tolerances(spearman=0.98, top_ten=0.9, total=0.02, group=0.1, selected=0)
PLATEAU = {f"g{i}": 1.5 for i in range(1, 9)}


def drifts(before, after, **limits):
    comparison = compare(case_result_of(before), case_result_of(after))
    return find_drifts(comparison, replace(LOOSE, **limits))


def test_marker_replaces_the_tolerances_it_names():
    expected = Tolerances(spearman=0.98, top_ten=0.9, total=0.02, group=0.5, selected=3)
    assert STRICT.with_marker({"group": 0.5, "selected": 3}) == expected
    assert STRICT.with_marker({}) == STRICT


@pytest.mark.parametrize(
    "kwargs", [{}, {"group": 0}, {"total": 0.5, "selected": 0, "top_ten": 1}, {"selected": 3.0}]
)
def test_marker_with_known_names_and_finite_numbers_is_accepted(kwargs):
    check_marker((), kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "refused"),
    [
        ((0.1,), {}, "0.1"),
        ((), {"sperman": 0.9}, "sperman=0.9"),
        ((), {"group": "0.1"}, "group='0.1'"),
        ((), {"group": True}, "group=True"),
        ((), {"group": -0.1}, "group=-0.1"),
        ((), {"group": math.nan}, "group=nan"),
        ((), {"total": 0.1, "selected": [1]}, "selected=[1]"),
        ((), {"selected": 1.5}, "selected=1.5"),
    ],
)
def test_marker_with_other_arguments_is_refused(args, kwargs, refused):
    message = (
        f"marker aq_tolerance: {refused} is not allowed; known names: group, selected, spearman, "
        "top_ten, total; each value must be a finite number of at least 0, and an integer for "
        "selected"
    )
    with pytest.raises(UsageError) as caught:
        check_marker(args, kwargs)
    assert str(caught.value) == message
    if not args:
        with pytest.raises(UsageError) as caught:
            STRICT.with_marker(kwargs)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("limits", "before", "after", "expected"),
    [
        (
            {"spearman": 0.98},
            {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0},
            {"a": 3.0, "b": 4.0, "c": 2.0, "d": 1.0},
            "rank correlation of the groups 0.8000, at least 0.98 required (--aq-tol-spearman)",
        ),
        (
            {"spearman": 0.8000000001},
            {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0},
            {"a": 3.0, "b": 4.0, "c": 2.0, "d": 1.0},
            "rank correlation of the groups 0.8000000000, at least 0.8000000001 required "
            "(--aq-tol-spearman)",
        ),
        (
            {"total": 0.125},
            {"a": 4.0, "b": 4.0},
            {"a": 4.0, "b": 5.00001},
            "total score +12.5001%, 12.5000% allowed (--aq-tol-total)",
        ),
        (
            {"group": 0.25},
            {"a": 4.0, "b": 4.0},
            {"a": 4.0, "b": 5.00001},
            "1 of 2 groups drifted by more than 25.0000%, up to 25.0002% (--aq-tol-group)",
        ),
        (
            {"top_ten": 0.9},
            {"g0": 1.0, "a": 5.0, "b": 5.0, **PLATEAU, "z": 0.2},
            {"g0": 2.0, "a": 0.1, "b": 0.1, **PLATEAU, "z": 1.2},
            "80% of the ten most sensitive groups kept, at least 90% required (--aq-tol-top-ten)",
        ),
        (
            {"total": 0.02},
            {"a": 4.0, "b": 4.0},
            {"a": 4.0, "b": 3.0},
            "total score -12.50%, 2.00% allowed (--aq-tol-total)",
        ),
        (
            {"total": 0.02},
            {"a": 4.0, "b": 4.0},
            {"a": 4.0, "b": math.inf},
            "total score +inf%, 2.00% allowed (--aq-tol-total)",
        ),
        (
            {"group": 0.1},
            {"a": 4.0, "b": 4.0, "c": 4.0},
            {"a": 4.8, "b": 3.2, "c": 4.2},
            "2 of 3 groups drifted by more than 10.00%, up to 20.00% (--aq-tol-group)",
        ),
    ],
)
def test_drift_is_described_with_value_limit_and_option(scored, limits, before, after, expected):
    assert drifts(scored(before), scored(after), **limits) == (expected,)


def test_drift_equal_to_the_limit_is_allowed(scored):
    before, after = scored({"a": 4.0, "b": 4.0}), scored({"a": 5.0, "b": 4.0})
    assert drifts(before, after, group=0.25, total=0.125) == ()


def test_changed_selections_are_counted(manifest):
    layers = {name: replace(layer, selected=True) for name, layer in manifest.layers.items()}
    after = replace(manifest, layers=layers)
    assert drifts(manifest, after, selected=1) == ()
    assert drifts(manifest, after, selected=0) == (
        "1 group selected otherwise under the bit budget, 0 allowed (--aq-tol-selected)",
    )


def test_new_and_vanished_groups_always_count_as_drifts(scored):
    before, after = scored({"a": 1.0, "b": 1.0}), scored({"b": 1.0, "c": 1.0, "d": 1.0})
    assert drifts(before, after) == ("2 groups new, such as c", "1 group vanished, such as a")
