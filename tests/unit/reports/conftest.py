"""Report folders that several test modules write."""

import pytest
from builders import results_of, with_case_names
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records.outcomes import SkippedCase
from pytest_autoquant.reports.write import draw_layer_maps, write_case, write_summary


@pytest.fixture
def line(manifest):
    """The measured case as reports see it."""
    return case_result_of(manifest)


@pytest.fixture
def manifests(manifest):
    """The same measurement under three overlays."""
    names = ("default", "w_group64", "a_per_token_dynamic")
    return [with_case_names(manifest, granularity=name) for name in names]


@pytest.fixture
def session(tmp_path, manifests):
    """A report folder as a pytest session leaves it: three cases and a skip."""
    for manifest in manifests:
        write_case(tmp_path, manifest)
    draw_layer_maps(tmp_path, map(case_result_of, manifests))
    skip = SkippedCase(case_id="toy/wfp4_afp8", status="needs-cuda", reason="RuntimeError: no CUDA")
    results = results_of(*map(case_result_of, manifests), skip)
    write_summary(tmp_path, results)
    return results
