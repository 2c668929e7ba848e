"""What a worker reports of a test: ASCII JSON that reads back as it was sent."""

import json

import pytest
from builders import structure_check
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.records.outcomes import FailedCase, KeptCase, SkippedCase
from pytest_autoquant.manifests.records.scheme_manifest import dump_scheme, load_scheme
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.plugin.messages.outcome import (
    Checked,
    DerivedScheme,
    Failed,
    Kept,
    MeasuredCase,
    Skipped,
    WorkerReport,
    dump_report,
    load_report,
)

CASE = "toy/wint4_aint8/default/small/gradient"
CHECK = structure_check()


@pytest.fixture
def report(manifest, derived):
    """A report with an outcome of every kind."""
    return WorkerReport(
        outcomes=(
            MeasuredCase(manifest=dump_manifest(manifest), rerun="torch 2.10 -> 2.11"),
            DerivedScheme(manifest=dump_scheme(derived)),
            Kept(case=KeptCase(case_id=CASE)),
            Skipped(case=SkippedCase(case_id=CASE, status="no-effect", reason="größe | <b>\n")),
            Failed(case=FailedCase(case_id=CASE, problem="out of memory")),
            Checked(check=CHECK),
        ),
        tolerances={"group": 0.5, "selected": 3},
    )


def test_report_reads_back_as_it_was_sent(report):
    text = dump_report(report)
    json.loads(text, parse_constant=pytest.fail)
    assert load_report(text) == report
    assert [outcome["kind"] for outcome in json.loads(text)["outcomes"]] == [
        "measured",
        "scheme",
        "kept",
        "skipped",
        "failed",
        "checked",
    ]


def test_manifests_arrive_whole(report, manifest, derived):
    measured, scheme, *_ = load_report(dump_report(report)).outcomes
    assert load_manifest(measured.manifest, source="a worker") == manifest
    assert load_scheme(scheme.manifest, source="a worker") == derived


def test_tolerances_are_optional():
    report = WorkerReport(outcomes=(Kept(case=KeptCase(case_id=CASE)),))
    assert load_report(dump_report(report)).tolerances is None


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "not JSON",
        '{"outcomes": [{"kind": "guessed"}]}',
        '{"outcomes": [{"kind": "failed", "case": {"case_id": "x"}}]}',
    ],
)
def test_report_of_another_version_is_refused(text):
    with pytest.raises(RecordError, match="another version of pytest-autoquant"):
        load_report(text)
