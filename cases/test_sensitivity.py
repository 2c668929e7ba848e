"""One case per quant pair, granularity and calibration size: AutoQuant's score of every group."""

import math

import pytest


@pytest.mark.aq_gpu
def test_sensitivity(aq_case, aq_measure):
    manifest = aq_measure(aq_case)
    assert manifest.case.problems == ()
    assert manifest.num_quantized_layers == len(manifest.layers) > 0
    scored = [group.importance for group in manifest.layer_sensitivity.values()]
    assert scored
    assert all(score is not None and math.isfinite(score) for score in scored)
