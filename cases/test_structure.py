"""One case per quant pair and granularity: resolved, validated, its status known. No model."""

import pytest


@pytest.mark.aq_structure
def test_structure(aq_combination, aq_check):
    line = aq_check(aq_combination)
    assert line.status in {"supported", "needs-cuda", "unsupported", "no-effect"}
    assert bool(line.reason) == (line.status != "supported")
    assert 0 < line.effective_bits <= 16
