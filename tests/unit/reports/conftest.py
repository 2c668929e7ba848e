"""Report folders that several test modules write."""

from dataclasses import replace

import pytest
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import SkippedCase
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_case, write_summary


def _renamed(manifest, granularity):
    case_id = manifest.case.case_id.replace(manifest.case.granularity, granularity)
    return replace(manifest, case=replace(manifest.case, granularity=granularity, case_id=case_id))


@pytest.fixture
def manifests(manifest):
    """The same measurement under three overlays."""
    return [_renamed(manifest, name) for name in ("default", "w_group64", "a_per_token_dynamic")]


@pytest.fixture
def session(tmp_path, manifests):
    """A report folder as a pytest session leaves it: three cases and a skip."""
    results = SessionResults()
    for manifest in manifests:
        write_case(tmp_path, manifest)
        line = case_result_of(manifest)
        results.cases[line.case_id] = line
    skip = SkippedCase(case_id="toy/wfp4_afp8", status="needs-cuda", reason="RuntimeError: no CUDA")
    results.skips[skip.case_id] = skip
    write_summary(tmp_path, results)
    return results
