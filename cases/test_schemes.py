"""One case per scheme: decide, quantize, measure on held-out captions, and export if asked."""

import pytest


@pytest.mark.aq_gpu
@pytest.mark.aq_scheme
def test_scheme(aq_scheme, aq_derive):
    manifest = aq_derive(aq_scheme)
    assert manifest.measured.num_tokens > 0
    assert 0 <= manifest.measured.agreement <= 1
    decided = {name for group in manifest.groups if group.format for name in group.modules}
    if manifest.export is not None:
        stored = manifest.export.num_quantized
        has_experts = any(name.endswith(".experts") for name in decided)  # three linears for each
        assert stored > len(decided) if has_experts else stored == len(decided)
        if manifest.scheme.target == "vllm":
            assert manifest.export.violations == ()
            assert manifest.export.not_checked is None
            assert manifest.export.load != "failed"
