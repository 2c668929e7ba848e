"""Cases that an earlier run measured: found by case, and only if they are complete."""

import json
from dataclasses import replace

import pytest
from builders import changed
from pytest_autoquant.manifests.fingerprint import differences, fingerprint_of
from pytest_autoquant.manifests.layout import case_path
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest
from pytest_autoquant.regression.resume import (
    dump_earlier,
    earlier_manifest,
    load_earlier,
    read_earlier,
)
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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"schema_version": 1}', b"[]"])
def test_damaged_manifest_is_measured_again(tmp_path, case, manifest, content):
    write_case(tmp_path, manifest).write_bytes(content)
    assert earlier_manifest(tmp_path, case) is None


def test_manifest_of_a_newer_version_is_measured_again(tmp_path, case, manifest):
    path = write_case(tmp_path, manifest)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    assert earlier_manifest(tmp_path, case) is None


def test_folder_in_place_of_a_manifest_is_ignored(tmp_path, case):
    (tmp_path / case_path(case)).mkdir(parents=True)
    assert earlier_manifest(tmp_path, case) is None


def test_fingerprints_are_read_by_case(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    cases = [replace(case, size="large"), case]
    assert read_earlier(tmp_path, cases) == {case.case_id: fingerprint_of(manifest)}


def test_missing_folder_has_no_fingerprints(tmp_path, case):
    assert read_earlier(tmp_path / "away", [case]) == {}


def test_editing_the_package_keeps_what_was_measured(tmp_path, case, manifest):
    """Only the measurement version of the harness is compared."""
    before = changed(manifest, "environment", harness="0.1.0+m1")
    write_case(tmp_path, before)
    (earlier,) = read_earlier(tmp_path, [case]).values()
    now = fingerprint_of(changed(manifest, "environment", harness="0.1.1+m1"))
    later = fingerprint_of(changed(manifest, "environment", harness="0.1.1+m2"))
    assert differences(earlier, now) == ()
    assert [d.field for d in differences(earlier, later)] == ["harness"]


def test_fingerprints_read_back_as_written(manifest):
    other = replace(manifest, run_config=replace(manifest.run_config, effective_bits=4.1))
    earlier = {"a": fingerprint_of(manifest), "größe/|": fingerprint_of(other)}
    assert load_earlier(dump_earlier(earlier)) == earlier
    assert load_earlier(dump_earlier({})) == {}
