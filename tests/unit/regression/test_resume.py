"""Cases that an earlier run measured: found by case, and only if they are complete."""

from dataclasses import replace

import pytest
from builders import changed
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.fingerprint import differences, fingerprint_of
from pytest_autoquant.manifests.layout import case_path
from pytest_autoquant.manifests.outcome_log import append
from pytest_autoquant.manifests.outcomes import FailedCase
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest
from pytest_autoquant.regression.resume import EarlierRun, earlier_manifest, read_earlier
from pytest_autoquant.reports.write import write_case


@pytest.fixture
def case(findings):
    return findings.case


def test_earlier_manifest_is_read(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    assert earlier_manifest(tmp_path, case) == manifest


def test_alias_counts_as_measured(tmp_path, case, manifest):
    alias = changed(manifest, "case", status="alias", alias_of="toy/first")
    write_case(tmp_path, alias)
    assert earlier_manifest(tmp_path, case) == alias


def test_failed_case_has_no_earlier_manifest(tmp_path, case, manifest):
    write_case(tmp_path, changed(manifest, "case", status="failed", problems=("out of memory",)))
    assert earlier_manifest(tmp_path, case) is None


def test_manifest_of_another_case_is_not_taken(tmp_path, case, manifest):
    path = tmp_path / case_path(case)
    write_case(tmp_path, manifest)
    path.write_text(dump_manifest(changed(manifest, "case", case_id="toy/another")))
    assert earlier_manifest(tmp_path, case) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON: "),
        (b"{", "is not JSON: "),
        (b'{"schema_version": 1}', "is not a valid manifest: "),
        (b'{"schema_version": 99}', "was written by a newer version: schema 99"),
    ],
)
def test_unreadable_manifest_is_named_and_its_case_measured_again(
    tmp_path, case, manifest, content, problem
):
    path = write_case(tmp_path, manifest)
    path.write_bytes(content)
    with pytest.raises(RecordError):
        earlier_manifest(tmp_path, case)
    earlier = read_earlier(tmp_path, [case])
    assert earlier.fingerprints == {}
    (sentence,) = earlier.unreadable
    assert sentence.startswith(f"{path}: {problem}")
    assert sentence.endswith("; its case is measured again")


def test_folder_in_place_of_a_manifest_is_ignored(tmp_path, case):
    (tmp_path / case_path(case)).mkdir(parents=True)
    assert earlier_manifest(tmp_path, case) is None


def test_fingerprints_are_read_by_case(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    earlier = read_earlier(tmp_path, [replace(case, size="large"), case])
    assert earlier == EarlierRun(fingerprints={case.case_id: fingerprint_of(manifest)})


def test_case_whose_own_assertion_failed_is_not_kept(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    append(tmp_path, FailedCase(case_id=case.case_id, problem="assert 1 == 2"))
    assert read_earlier(tmp_path, [case]) == EarlierRun()


def test_missing_folder_has_no_fingerprints(tmp_path, case):
    assert read_earlier(tmp_path / "away", [case]) == EarlierRun()


def test_editing_the_package_keeps_what_was_measured(tmp_path, case, manifest):
    """Only the measurement version of the harness is compared."""
    write_case(tmp_path, changed(manifest, "environment", harness="0.1.0+m1"))
    (earlier,) = read_earlier(tmp_path, [case]).fingerprints.values()
    now = fingerprint_of(changed(manifest, "environment", harness="0.1.1+m1"))
    later = fingerprint_of(changed(manifest, "environment", harness="0.1.1+m2"))
    assert differences(earlier, now) == ()
    assert [d.field for d in differences(earlier, later)] == ["harness"]
