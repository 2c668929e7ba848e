"""What an earlier run measured: found by case, and only where it is complete."""

from dataclasses import replace

import pytest
from builders import changed, with_check, with_whole
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.fingerprint import differences, fingerprint_of
from pytest_autoquant.manifests.layout import case_path
from pytest_autoquant.manifests.records.outcome_log import OUTCOME_LOG, append
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest
from pytest_autoquant.regression.resume import EarlierRun, earlier_manifest, read_earlier
from pytest_autoquant.reports.write import write_case


@pytest.fixture
def case(findings):
    return findings.case


@pytest.mark.parametrize("values", [{}, {"status": "alias", "alias_of": "toy/first"}])
def test_measured_case_and_alias_are_found(tmp_path, case, manifest, values):
    earlier = changed(manifest, "case", **values)
    write_case(tmp_path, earlier)
    assert earlier_manifest(tmp_path, case) == earlier


@pytest.mark.parametrize(
    "values", [{"status": "failed", "problems": ("out of memory",)}, {"case_id": "toy/another"}]
)
def test_failed_case_and_manifest_of_another_case_are_not_taken(tmp_path, case, manifest, values):
    path = write_case(tmp_path, manifest)
    path.write_text(dump_manifest(changed(manifest, "case", **values)))
    assert earlier_manifest(tmp_path, case) is None
    assert read_earlier(tmp_path, [case]) == EarlierRun()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON: "),
        (b"{", "is not JSON: "),
        (b"\xff", "is not JSON: "),
        (b"[]", "is not a manifest: it has no schema_version"),
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
    earlier = read_earlier(tmp_path, [replace(case, size="large"), case])
    assert earlier.fingerprints == {}
    (sentence,) = earlier.unreadable
    assert sentence.startswith(f"{path}: {problem}")
    assert sentence.endswith("; its case is measured again")


def test_folder_in_place_of_a_manifest_is_ignored(tmp_path, case):
    (tmp_path / case_path(case)).mkdir(parents=True)
    assert earlier_manifest(tmp_path, case) is None


def test_fingerprints_are_read_by_case(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    cases = [replace(case, size="large"), case]
    expected = EarlierRun(fingerprints={case.case_id: fingerprint_of(manifest)})
    assert read_earlier(tmp_path, cases) == expected


def test_missing_folder_has_no_fingerprints(tmp_path, case):
    assert read_earlier(tmp_path / "away", [case]) == EarlierRun()


def test_case_whose_test_failed_after_it_was_measured_is_not_kept(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    append(tmp_path, FailedCase(case_id=case.case_id, problem="assert 0.2 < 0.1"))
    assert read_earlier(tmp_path, [case]) == EarlierRun()
    append(tmp_path, SkippedCase(case_id=case.case_id, status="needs-cuda", reason="no CUDA"))
    assert list(read_earlier(tmp_path, [case]).fingerprints) == [case.case_id]


def test_corrupt_outcome_log_is_refused_with_its_line(tmp_path, case):
    (tmp_path / OUTCOME_LOG).write_text("{}\n")
    with pytest.raises(RecordError, match=rf"{OUTCOME_LOG}, line 1"):
        read_earlier(tmp_path, [case])


def test_editing_the_package_keeps_what_was_measured(tmp_path, case, manifest):
    """Only the measurement version of the harness is compared."""
    write_case(tmp_path, changed(manifest, "environment", harness="0.1.0+m1"))
    (earlier,) = read_earlier(tmp_path, [case]).fingerprints.values()
    now = fingerprint_of(changed(manifest, "environment", harness="0.1.1+m1"))
    later = fingerprint_of(changed(manifest, "environment", harness="0.1.1+m2"))
    assert differences(earlier, now) == ()
    assert [d.field for d in differences(earlier, later)] == ["harness"]


@pytest.mark.parametrize(
    ("asked", "measured"),
    [
        ({"checked": True}, lambda manifest: with_check(manifest, [3.0, 2.0, 1.0])),
        ({"whole": True}, lambda manifest: with_whole(manifest, [1.0, 2.0])),
    ],
    ids=["check of scores", "whole model"],
)
def test_case_that_lacks_what_is_asked_for_is_measured_again(
    tmp_path, case, manifest, asked, measured
):
    """It cannot be measured beside the scores of stock AutoQuant, whose case is kept."""
    for engine, kept in (("replay", []), ("modelopt", [case.case_id])):
        write_case(tmp_path, changed(manifest, "run_config", engine=engine))
        assert list(read_earlier(tmp_path, [case]).fingerprints) == [case.case_id]
        assert list(read_earlier(tmp_path, [case], **asked).fingerprints) == kept
    write_case(tmp_path, measured(changed(manifest, "run_config", engine="replay")))
    assert list(read_earlier(tmp_path, [case], **asked).fingerprints) == [case.case_id]


def test_check_that_kl_div_does_not_need_is_not_missed(tmp_path, case, manifest):
    """The ini file may ask for checks of what the command line measures by ``kl_div``."""
    scheme = replace(manifest.scheme, auto_quantize_method="kl_div")
    manifest = replace(changed(manifest, "run_config", engine="replay"), scheme=scheme)
    case = replace(case, method="kl_div")
    record = replace(manifest.case, method="kl_div", case_id=case.case_id)
    write_case(tmp_path, replace(manifest, case=record))
    earlier = read_earlier(tmp_path, [case], checked=True)
    assert list(earlier.fingerprints) == [case.case_id]
