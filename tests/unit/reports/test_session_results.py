"""What a session found out, reduced to what summaries show."""

from dataclasses import replace

import pytest
from builders import results_of, structure_check
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.reports.session_results import SessionResults, most_sensitive_groups, origin

SKIP, ERROR, MEASURED = "skip", "error", "measured"


def skip(case_id, status="no-effect", reason="ignored"):
    return SkippedCase(case_id=case_id, status=status, reason=reason)


def failure(case_id, problem="x"):
    return FailedCase(case_id=case_id, problem=problem)


def test_mean_shares_count_every_measured_case_once_whatever_its_total(case_of):
    lines = [
        case_of({"mlp": 2e-10, "output": 8e-10}),
        case_of({"mlp": 6e8, "output": 4e8}),
        case_of({"mlp": 1.0}, status="alias"),
        case_of({"mlp": 1.0}, status="failed"),
    ]
    (ranking,) = most_sensitive_groups(lines)
    assert (ranking.model, ranking.is_aligned) == ("toy", False)
    assert [group for group, _ in ranking.groups] == ["output", "mlp"]
    assert dict(ranking.groups) == pytest.approx({"output": 0.6, "mlp": 0.4})
    assert most_sensitive_groups(lines, most=1)[0].groups == ranking.groups[:1]
    assert most_sensitive_groups([]) == ()


def test_rankings_are_by_model_and_align_names_so_that_shares_never_exceed_the_whole(case_of):
    prefixes = ("", "language_model.", "model.language_model.")
    cases = [
        case_of({f"{prefix}layers.0.up": 3.0, f"{prefix}layers.1.up": 1.0}, pair=prefix + "p")
        for prefix in prefixes
    ]
    cases.append(case_of({"layers.0.up": 1.0, "lm_head": 1.0}, pair="head"))
    cases.append(case_of({"layers.0.up": 1.0}, model="other"))
    other, toy = most_sensitive_groups(cases)
    assert (other.model, other.groups, other.is_aligned) == (
        "other",
        (("layers.0.up", 1.0),),
        False,
    )
    assert (toy.model, toy.is_aligned) == ("toy", True)
    assert dict(toy.groups) == pytest.approx(
        {"layers.0.up": (3 * 0.75 + 0.5) / 4, "layers.1.up": 3 * 0.25 / 4, "lm_head": 0.5 / 4}
    )


def test_skips_are_counted_by_status_and_reason_most_frequent_first():
    others = (skip("a", "needs-cuda", "no kernel"), skip("d", reason="another reason"))
    assert results_of(*others, *map(skip, "bce")).skip_counts() == [
        ("no-effect", "ignored", 3),
        ("needs-cuda", "no kernel", 1),
        ("no-effect", "another reason", 1),
    ]


def test_failures_are_failed_manifests_and_cases_that_raised(line):
    failed = replace(line, case_id="broken", status="failed", problems=("first", "second"))
    raised = failure("raised", "out of memory")
    results = results_of(line, failed, raised, skip("skipped"))
    assert results.failures == [failure("broken", "first; second"), raised]
    assert results.by_status("measured") == [line]
    assert results.case_ids == {line.case_id, "broken", "raised", "skipped"}


def test_results_are_empty_without_any_outcome(line):
    assert SessionResults().is_empty
    for outcome in (line, skip("a"), failure("a"), structure_check()):
        assert not results_of(outcome).is_empty
    assert not SessionResults(lost=("a",)).is_empty
    assert not SessionResults(write_errors=["disk full"]).is_empty


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((SKIP, ERROR), {ERROR}),
        ((ERROR, SKIP), {SKIP}),
        ((SKIP, MEASURED), {MEASURED}),
        ((MEASURED, SKIP), {MEASURED}),
        ((ERROR, MEASURED), {MEASURED}),
        ((MEASURED, ERROR), {MEASURED, ERROR}),
        ((MEASURED, ERROR, MEASURED), {MEASURED}),
        ((MEASURED, ERROR, SKIP), {MEASURED, ERROR}),
    ],
)
def test_later_outcome_replaces_an_earlier_one_unless_scores_would_be_lost(
    line, outcomes, expected
):
    made = {SKIP: skip(line.case_id), ERROR: failure(line.case_id), MEASURED: line}
    results = results_of(*(made[outcome] for outcome in outcomes))
    known = {MEASURED: results.cases, SKIP: results.skips, ERROR: results.errors}
    assert {name for name, part in known.items() if part} == expected


def test_sort_orders_every_part_by_id(line):
    cases = [replace(line, case_id=name) for name in "ba"]
    gated = {"h": "drifted", "g": "drifted"}
    results = results_of(*cases, *map(skip, "dc"), *map(failure, "fe"), gated=gated)
    results.sort()
    parts = (results.cases, results.skips, results.errors, results.gated)
    assert ["".join(part) for part in parts] == ["ab", "cd", "ef", "gh"]


def test_origin_lists_each_value_once_in_the_order_of_the_cases(case_of):
    first = case_of(origin={"torch": "2.11", "device": "CPU"})
    second = case_of(pair="p", origin={"torch": "2.12", "device": "CPU", "CUDA": "13"})
    assert origin(results_of(first, second)) == [
        ("torch", ("2.11", "2.12")),
        ("device", ("CPU",)),
        ("CUDA", ("13",)),
    ]
    assert origin(SessionResults()) == []
