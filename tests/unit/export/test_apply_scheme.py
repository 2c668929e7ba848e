"""A scheme quantizes exactly the groups that it names, and the model is restored bit for bit."""

import pytest
import torch
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.export.apply_scheme import applied, explicit_config, shared_range
from scheme_model import GATE_UP, MIXTURE, OUT, QKV, formats_of, logits_of, quantizers, snapshot


def test_config_names_every_quantizer_explicitly():
    off = {"quantizer_name": "*", "enable": False}
    fp8 = {"num_bits": (4, 3), "axis": None}
    int4 = {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}
    assert explicit_config(MIXTURE) == {
        "quant_cfg": [
            off,
            *({"quantizer_name": f"{name}.weight_quantizer", "cfg": fp8} for name in QKV),
            *({"quantizer_name": f"{name}.input_quantizer", "cfg": fp8} for name in QKV),
            *({"quantizer_name": f"{name}.weight_quantizer", "cfg": int4} for name in GATE_UP),
        ],
        "algorithm": "max",
    }
    assert explicit_config(()) == {"quant_cfg": [off], "algorithm": "max"}


@pytest.mark.parametrize("algorithm", ["awq_lite", {"method": "smoothquant"}])
def test_calibration_that_changes_weights_is_refused(algorithm):
    (group,) = formats_of(("wint4_afp16", OUT))
    object.__setattr__(group.config, "algorithm", algorithm)
    with pytest.raises(MeasurementError) as error:
        explicit_config([group])
    assert str(error.value) == (
        f"wint4_afp16 calibrates with {algorithm}, which a scheme cannot apply; give candidates "
        "that calibrate with max"
    )


def test_only_named_groups_are_quantized_and_the_model_is_restored(tiny, calibration):
    before = snapshot(tiny.module)
    with applied(tiny, MIXTURE, calibration):
        enabled = {name for name, q in quantizers(tiny.module).items() if q.is_enabled}
    assert enabled == {
        *(f"{name}.weight_quantizer" for name in (*QKV, *GATE_UP)),
        *(f"{name}.input_quantizer" for name in QKV),
    }
    with applied(tiny, (), calibration):
        assert quantizers(tiny.module) == {}
    assert snapshot(tiny.module) == before
    assert tiny.module.lm_head.weight is tiny.module.get_input_embeddings().weight


def test_model_is_restored_after_an_exception(tiny, calibration):
    before = snapshot(tiny.module)
    with pytest.raises(ZeroDivisionError), applied(tiny, MIXTURE, calibration):
        raise ZeroDivisionError
    with pytest.raises(AttributeError), applied(tiny, MIXTURE, [*calibration[:1], object()]):
        pytest.fail("calibration must fail")
    assert snapshot(tiny.module) == before


def test_applying_twice_gives_equal_bits(tiny, calibration, held_out_batches):
    batches, outputs = held_out_batches[:1], []
    for _ in range(2):
        with applied(tiny, MIXTURE, calibration):
            outputs.append(logits_of(tiny, batches)[0].tobytes())
    assert outputs[0] == outputs[1] != logits_of(tiny, batches)[0].tobytes()


def test_linears_of_a_group_share_the_largest_range(tiny, calibration):
    largest = {n: tiny.module.get_submodule(n).weight.abs().max().item() for n in (*QKV, *OUT)}
    assert len({largest[name] for name in QKV}) > 1
    formats = formats_of(("wfp8_afp8", QKV, OUT))
    with applied(tiny, formats, calibration):
        ranges = {n: tiny.module.get_submodule(n).weight_quantizer.amax for n in largest}
    assert {amax.shape for amax in ranges.values()} == {torch.Size([])}
    shared = max(largest[name] for name in QKV)
    expected = largest | dict.fromkeys(QKV, shared)
    assert {name: amax.item() for name, amax in ranges.items()} == expected
    assert shared_range(tiny, formats[0]).item() == shared


@pytest.mark.parametrize(
    ("candidate", "block"), [("wint4_afp16", 128), ("wfp8_afp8-w_per_out_channel", None)]
)
def test_linears_with_finer_scales_keep_their_own_ranges(tiny, calibration, candidate, block):
    (group,) = formats_of((candidate, QKV))
    assert shared_range(tiny, group) is None
    with applied(tiny, [group], calibration):
        for name in QKV:
            linear = tiny.module.get_submodule(name)
            rows = linear.weight.detach().abs()
            own = rows.reshape(-1, block or rows.shape[1]).amax(1)
            assert torch.equal(linear.weight_quantizer.amax.flatten(), own)


def test_unquantized_weights_have_no_shared_range(tiny):
    (group,) = formats_of(("wfp16_afp8", QKV))
    assert shared_range(tiny, group) is None
