"""Values that are not finite and ranges, compared with torch for every code of each dtype."""

import numpy as np
import pytest
import torch
from pytest_autoquant.export.checkpoint import tensor_values
from pytest_autoquant.export.checkpoint.tensor_values import Values, summarize

#: safetensors' name, torch's dtype, integers whose codes are tried.
DTYPES = {
    "F16": (torch.float16, np.arange(1 << 16, dtype=np.uint16)),
    "BF16": (torch.bfloat16, np.arange(1 << 16, dtype=np.uint16)),
    "F32": (torch.float32, np.arange(1 << 16, dtype=np.uint32) << 16),
    "F64": (torch.float64, np.arange(1 << 16, dtype=np.uint64) << 48),
    "F8_E4M3": (torch.float8_e4m3fn, np.arange(256, dtype=np.uint8)),
    "F8_E5M2": (torch.float8_e5m2, np.arange(256, dtype=np.uint8)),
    "F8_E8M0": (torch.float8_e8m0fnu, np.arange(256, dtype=np.uint8)),
}


@pytest.mark.parametrize(("dtype", "case"), DTYPES.items(), ids=DTYPES)
def test_codes_that_are_not_finite_are_counted_across_pieces(monkeypatch, dtype, case):
    monkeypatch.setattr(tensor_values, "_CHUNK", 64)
    torch_dtype, codes = case
    raw = codes.view(np.uint8)
    values = torch.from_numpy(raw.copy()).view(torch_dtype).double()
    finite = values[values.isfinite()]
    found = summarize(raw, dtype, with_range=True)
    assert found.num_non_finite == values.numel() - finite.numel()
    if dtype not in ("F8_E5M2", "F8_E8M0"):  # no scale has them, so their range is never asked for
        assert (found.lowest, found.highest) == (finite.min().item(), finite.max().item())


def test_bytes_have_a_range_and_other_dtypes_have_none():
    raw = np.array([3, 255], np.uint8)
    assert summarize(raw, "U8", with_range=True) == Values(lowest=3.0, highest=255.0)
    assert summarize(raw, "I16", with_range=True) == Values()
    assert summarize(raw, "U8", with_range=False) == Values()
    assert summarize(raw[:0], "F32", with_range=True) == Values()
