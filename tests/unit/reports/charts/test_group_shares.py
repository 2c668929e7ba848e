"""Shares of the total score by group, over the cases of a view."""

from statistics import mean

import pytest
from builders import results_of
from pytest_autoquant.reports.charts.grid import View
from pytest_autoquant.reports.charts.group_shares import GroupShares, group_shares

VIEW = View(model="toy", method="gradient", size="small")


def shares_of(*cases):
    return group_shares(results_of(*cases), VIEW)


def test_groups_are_ordered_by_mean_share_and_cases_by_total(case_of):
    found = shares_of(
        case_of({"a": 1e9, "b": 3e9}, pair="worse"),
        case_of({"a": 1e-9, "b": 1e-9, "c": 2e-9}, pair="better"),
        case_of({"a": 1.0}, pair="elsewhere", size="large"),
        case_of({"a": 1.0}, pair="alias", status="alias"),
        case_of({"a": 0.0}, pair="zero"),
        case_of({"a": None}, pair="infinite"),
    )
    assert [case_id.split("/")[1] for case_id in found.cases] == ["better", "worse"]
    expected = {"b": (0.25, 0.75), "c": (0.5,), "a": (0.25, 0.25)}
    assert {group.group for group in found.groups} == set(expected)
    means = [group.mean for group in found.groups]
    assert means == sorted(means, reverse=True)
    for group in found.groups:
        values = expected[group.group]
        assert group.cases == len(values)
        assert (group.mean, group.lowest, group.highest) == pytest.approx(
            (mean(values), min(values), max(values))
        )
        assert group.shown[0] == f"{100 * mean(values):.1f}%"


def test_share_that_overflows_is_not_a_number(case_of):
    (group,) = shares_of(case_of({"a": 1.0}, total_score=5e-324)).groups
    assert (group.mean, group.shown) == (None, ("n/a",) * 3)


def test_view_without_cases_has_no_groups():
    assert shares_of() == GroupShares()


def test_cases_that_name_groups_otherwise_share_their_rows(case_of):
    found = shares_of(
        case_of({"layers.0.up": 3.0, "layers.1.up": 1.0}),
        case_of({"model.layers.0.up": 1.0, "model.layers.1.up": 1.0}, pair="p"),
    )
    assert found.is_aligned
    assert [(g.group, g.key, g.cases, g.mean) for g in found.groups] == [
        ("layers.0.up", "layers.0.up", 2, 0.625),
        ("layers.1.up", "layers.1.up", 2, 0.375),
    ]
