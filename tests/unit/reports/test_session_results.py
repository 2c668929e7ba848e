"""What a session found out, reduced to what summaries show."""

from dataclasses import replace

import pytest
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.reports.session_results import SessionResults, most_sensitive_groups, origin


@pytest.fixture
def line(manifest):
    return case_result_of(manifest)


def with_scores(line, total, **scores):
    """Return the case with the scores of these groups in place of its own."""
    template = line.groups[0]
    groups = tuple(
        replace(template, name=name, score=score, rank=rank)
        for rank, (name, score) in enumerate(scores.items(), start=1)
    )
    return replace(line, total_score=total, groups=groups, module_order=tuple(scores))


def skip(case_id, status, reason):
    return SkippedCase(case_id=case_id, status=status, reason=reason)


def test_mean_shares_count_every_measured_case_once_whatever_its_total(line):
    lines = [
        with_scores(line, 1e-9, mlp=2e-10, output=8e-10),
        with_scores(line, 1e9, mlp=6e8, output=4e8),
        replace(with_scores(line, 1.0, mlp=1.0), status="alias"),
        replace(with_scores(line, 1.0, mlp=1.0), status="failed"),
    ]
    ranked = most_sensitive_groups(lines)
    assert [group for group, _ in ranked] == ["output", "mlp"]
    assert dict(ranked) == pytest.approx({"output": 0.6, "mlp": 0.4})
    assert most_sensitive_groups(lines, most=1) == ranked[:1]
    assert most_sensitive_groups([]) == []


def test_skips_are_counted_by_status_and_reason_most_frequent_first():
    skips = [
        skip("a", "needs-cuda", "no kernel"),
        skip("b", "no-effect", "ignored"),
        skip("c", "no-effect", "ignored"),
        skip("d", "no-effect", "another reason"),
        skip("e", "no-effect", "ignored"),
    ]
    results = SessionResults(skips={line.case_id: line for line in skips})
    assert results.skip_counts() == [
        ("no-effect", "ignored", 3),
        ("needs-cuda", "no kernel", 1),
        ("no-effect", "another reason", 1),
    ]


def test_failures_are_failed_manifests_and_cases_that_raised(line):
    failed = replace(line, case_id="broken", status="failed", problems=("first", "second"))
    raised = FailedCase(case_id="raised", problem="out of memory")
    results = SessionResults(cases={"ok": line, "broken": failed}, errors={"raised": raised})
    assert results.failures == [FailedCase(case_id="broken", problem="first; second"), raised]
    assert results.by_status("measured") == [line]


def test_results_are_empty_without_any_outcome(line):
    structure = StructureCheck(
        pair="p",
        granularity="g",
        status="supported",
        reason="",
        format_name="F",
        effective_bits=8.0,
        digest="d",
    )
    assert SessionResults().is_empty
    for filled in (
        SessionResults(cases={"a": line}),
        SessionResults(skips={"a": skip("a", "no-effect", "ignored")}),
        SessionResults(errors={"a": FailedCase(case_id="a", problem="x")}),
        SessionResults(structures={("p", "g"): structure}),
        SessionResults(lost=("a",)),
        SessionResults(write_errors=["disk full"]),
    ):
        assert not filled.is_empty


SKIP, ERROR, MEASURED = "skip", "error", "measured"


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((SKIP, SKIP), {SKIP}),
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
    made = {
        SKIP: skip(line.case_id, "needs-cuda", "no kernel"),
        ERROR: FailedCase(case_id=line.case_id, problem="out of memory"),
        MEASURED: line,
    }
    results = SessionResults()
    for outcome in outcomes:
        results.add(made[outcome])
    known = {MEASURED: results.cases, SKIP: results.skips, ERROR: results.errors}
    assert {name for name, part in known.items() if part} == expected


def test_every_case_that_sent_an_outcome_is_known(line):
    results = SessionResults()
    results.add(line)
    results.add(skip("skipped", "no-effect", "ignored"))
    results.add(FailedCase(case_id="raised", problem="x"))
    assert results.case_ids == {line.case_id, "skipped", "raised"}


def test_sort_orders_every_part_by_id(line):
    results = SessionResults(
        cases={name: replace(line, case_id=name) for name in "ba"},
        skips={name: skip(name, "no-effect", "ignored") for name in "dc"},
        errors={name: FailedCase(case_id=name, problem="x") for name in "fe"},
        gated={"h": "drifted", "g": "drifted"},
    )
    results.sort()
    parts = (results.cases, results.skips, results.errors, results.gated)
    assert ["".join(part) for part in parts] == ["ab", "cd", "ef", "gh"]


def test_origin_lists_each_value_once_in_the_order_of_the_cases(line):
    cases = [
        replace(
            line,
            case_id="a",
            source=replace(line.source, origin={"torch": "2.11", "device": "CPU"}),
        ),
        replace(
            line,
            case_id="b",
            source=replace(line.source, origin={"torch": "2.12", "device": "CPU", "CUDA": "13"}),
        ),
    ]
    assert origin(SessionResults(cases={case.case_id: case for case in cases})) == [
        ("torch", ("2.11", "2.12")),
        ("device", ("CPU",)),
        ("CUDA", ("13",)),
    ]
    assert origin(SessionResults()) == []
