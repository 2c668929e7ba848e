"""What an earlier run left: found by case, and only if it is a whole measurement of that case."""

import json
from dataclasses import replace

import pytest
from pytest_autoquant.manifests.fingerprint import fingerprint_of
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest
from pytest_autoquant.regression.resume import (
    case_path,
    dump_earlier,
    earlier_manifest,
    load_earlier,
    read_earlier,
)
from pytest_autoquant.reports.write import write_case


@pytest.fixture
def case(findings):
    return findings.case


def ended(manifest, **values):
    return replace(manifest, case=replace(manifest.case, **values))


def test_a_cases_manifest_is_looked_for_where_it_is_written(case, manifest):
    assert case_path(case) == manifest.path


def test_a_case_by_another_method_or_size_is_looked_for_elsewhere(case, manifest):
    by_kl = replace(case, method="kl_div")
    assert case_path(by_kl) == ended(manifest, method="kl_div").path
    assert case_path(replace(case, size="large")) == ended(manifest, size="large").path


def test_an_earlier_manifest_is_read_back(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    assert earlier_manifest(tmp_path, case) == manifest


def test_an_alias_counts_as_measured(tmp_path, case, manifest):
    alias = ended(manifest, status="alias", alias_of="toy/first")
    write_case(tmp_path, alias)
    assert earlier_manifest(tmp_path, case) == alias


def test_a_case_that_failed_has_no_earlier_manifest(tmp_path, case, manifest):
    write_case(tmp_path, ended(manifest, status="failed", problems=("out of memory",)))
    assert earlier_manifest(tmp_path, case) is None


def test_another_case_in_its_place_is_not_taken_for_it(tmp_path, case, manifest):
    path = tmp_path / case_path(case)
    write_case(tmp_path, manifest)
    path.write_text(dump_manifest(ended(manifest, case_id="toy/another")))
    assert earlier_manifest(tmp_path, case) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"schema_version": 1}', b"[]"])
def test_a_damaged_manifest_is_measured_again(tmp_path, case, manifest, content):
    write_case(tmp_path, manifest).write_bytes(content)
    assert earlier_manifest(tmp_path, case) is None


def test_a_manifest_of_a_newer_version_is_measured_again(tmp_path, case, manifest):
    path = write_case(tmp_path, manifest)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    assert earlier_manifest(tmp_path, case) is None


def test_a_folder_in_a_manifests_place_is_no_manifest(tmp_path, case):
    (tmp_path / case_path(case)).mkdir(parents=True)
    assert earlier_manifest(tmp_path, case) is None


def test_the_fingerprints_of_those_that_were_measured_are_read_by_case(tmp_path, case, manifest):
    write_case(tmp_path, manifest)
    cases = [replace(case, size="large"), case]
    assert read_earlier(tmp_path, cases) == {case.case_id: fingerprint_of(manifest)}


def test_where_nothing_ran_before_nothing_is_read(tmp_path, case):
    assert read_earlier(tmp_path / "away", [case]) == {}


def test_fingerprints_survive_the_way_to_a_worker(manifest):
    other = replace(manifest, run_config=replace(manifest.run_config, effective_bits=4.1))
    earlier = {"a": fingerprint_of(manifest), "größe/|": fingerprint_of(other)}
    assert load_earlier(dump_earlier(earlier)) == earlier


def test_no_fingerprints_survive_the_way_to_a_worker_too():
    assert load_earlier(dump_earlier({})) == {}
