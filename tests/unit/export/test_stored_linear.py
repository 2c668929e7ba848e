"""Weights dequantized from the layouts of ModelOpt's export, against values computed by hand."""

import pytest
import torch
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.stored_linear import StoredLinear, largest_error
from pytest_autoquant.formats.quantizer import QuantizerAttributes

E4M3, BYTES = torch.float8_e4m3fn, torch.uint8
PER_CHANNEL = {"num_bits": 8, "axis": 0}
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
ALL_E2M1 = E2M1 + [-value for value in E2M1]
#: Two codes per byte, the first in the lower four bits.
PACKED = [[16 * (code + 1) + code for code in range(0, 16, 2)]]


def blocks(size, num_bits=(2, 1), **others):
    sizes = size if isinstance(size, dict) else {-1: size}
    return {"num_bits": num_bits, "block_sizes": {**sizes, **others}}


LAYOUTS = {
    "FP8 per tensor": ([[448, -0.5]], E4M3, 0.25, {"num_bits": (4, 3)}, [[112, -0.125]]),
    "FP8 per channel": ([[1, 2], [3, -4]], E4M3, [0.5, 2], PER_CHANNEL, [[0.5, 1], [6, -8]]),
    "FP8 in blocks that the weight cuts": (
        [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
        E4M3,
        [[[[2], [3]]], [[[4], [5]]]],
        blocks({-1: 2, -2: 2}, (4, 3)),
        [[2, 2, 3], [2, 2, 3], [4, 4, 5]],
    ),
    "INT8": ([[127, -128], [1, 0]], torch.int8, [1, 0.5], PER_CHANNEL, [[127, -128], [0.5, 0]]),
    "INT4, two rows per byte": (
        [[0x7F, 0x81]],
        BYTES,
        [[1, 2], [3, 4]],
        blocks(1, 4, type="static"),
        [[-1, 2], [21, -32]],
    ),
    "MXFP8": (
        [[448, 1, -2, 0.5]],
        E4M3,
        torch.tensor([[128, 126]], dtype=BYTES),
        blocks(2, (4, 3), type="dynamic", scale_bits=(8, 0)),
        [[896, 2, -1, 0.25]],
    ),
    "MXFP4": (
        PACKED,
        BYTES,
        torch.tensor([[127, 130]], dtype=BYTES),
        blocks(8, type="dynamic", scale_bits=(8, 0)),
        [[*E2M1, *(-8 * value for value in E2M1)]],
    ),
}


@pytest.mark.parametrize(
    ("values", "dtype", "scale", "attributes", "expected"), LAYOUTS.values(), ids=LAYOUTS
)
def test_weight_of_each_layout(values, dtype, scale, attributes, expected):
    stored = StoredLinear(
        name="a", weight=torch.tensor(values).to(dtype), scale=torch.as_tensor(scale)
    )
    expected = torch.tensor(expected, dtype=torch.float32)
    actual = stored.dequantized(tuple(expected.shape), QuantizerAttributes.of(attributes))
    assert torch.equal(actual, expected)


def test_second_scale_of_nvfp4_multiplies_the_scales_of_blocks():
    stored = StoredLinear(
        name="a",
        weight=torch.tensor(PACKED, dtype=BYTES),
        scale=torch.tensor([[448.0, 0.5]]).to(E4M3),
        scale_2=torch.tensor(0.125),
    )
    attributes = QuantizerAttributes.of(blocks(8, type="dynamic", scale_bits=(4, 3)))
    expected = [value * (56 if place < 8 else 0.0625) for place, value in enumerate(ALL_E2M1)]
    assert torch.equal(stored.dequantized((1, 16), attributes), torch.tensor([expected]))


@pytest.mark.parametrize(
    ("weight", "scale", "attributes"),
    [
        (torch.zeros(4, 4), torch.tensor(1.0), {"num_bits": 8}),
        (torch.zeros(4, 3, dtype=torch.int8), torch.tensor(1.0), {"num_bits": 8}),
        (torch.zeros(4, 3, dtype=BYTES), torch.ones(4, 2), blocks(2)),
        (torch.zeros(4, 2, dtype=BYTES), torch.ones(4, 1), blocks(2)),
        (torch.zeros(4, 4, dtype=torch.int8), torch.ones(3), PER_CHANNEL),
        (torch.zeros(4, 4, dtype=torch.int8), torch.ones(4, 4), PER_CHANNEL),
    ],
    ids=["fp32", "cut", "half a column", "one block too few", "one scale too few", "no blocks"],
)
def test_other_shapes_are_refused(weight, scale, attributes):
    stored = StoredLinear(name="layers.0.o_proj", weight=weight, scale=scale)
    with pytest.raises(ExportError) as error:
        stored.dequantized((4, 4), QuantizerAttributes.of(attributes))
    assert str(error.value) == (
        f"the export stores layers.0.o_proj as {str(weight.dtype)[6:]} {tuple(weight.shape)} with "
        f"weight_scale {str(scale.dtype)[6:]} {tuple(scale.shape)}, which cannot be read back as a "
        "weight of shape (4, 4)"
    )


def test_error_is_relative_to_the_largest_weight_and_ties_may_go_either_way():
    weight = torch.tensor([2.5, 1.1, -4.0])
    expected = torch.tensor([2.0, 1.0, -4.0])
    assert largest_error(torch.tensor([3.0, 1.0, -4.0]), expected, weight) == 0.0
    assert largest_error(torch.tensor([3.0, 1.5, -4.0]), expected, weight) == pytest.approx(0.125)
    assert not largest_error(torch.tensor([torch.nan, 1.0, -4.0]), expected, weight) < 1e9
