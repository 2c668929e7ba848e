"""What cannot run is skipped with the status that holds and ModelOpt's own words."""

import copy
import json

import pytest
import torch

WITHOUT_CUDA = pytest.mark.skipif(
    torch.cuda.is_available(), reason="says what a machine without CUDA says"
)


@pytest.fixture(scope="module")
def skipped(sweep):
    """The sweep's skipped cases by id, from its ``summary.json``."""
    document = json.loads((sweep.root / "summary.json").read_text())
    return {line["case_id"]: (line["status"], line["reason"]) for line in document["skipped"]}


def case_id(pair, granularity):
    return f"tiny-qwen3-vl/{pair}/{granularity}/small/gradient"


def modelopts_words(weight):
    """What ModelOpt raises on the CPU for W4A8_MXFP4_FP8_CFG with these weight attributes."""
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(mtq.W4A8_MXFP4_FP8_CFG)
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*weight_quantizer":
            entry["cfg"] = weight
    model, batch = torch.nn.Sequential(torch.nn.Linear(128, 128)), torch.ones(2, 128)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        mtq.quantize(model, config, forward_loop=lambda m: m(batch))(batch)
    return f"{raised.type.__name__}: {raised.value}"


@WITHOUT_CUDA
@pytest.mark.parametrize(
    ("granularity", "status", "weight"),
    [
        (
            "default",
            "needs-cuda",
            {
                "num_bits": (2, 1),
                "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)},
            },
        ),
        ("w_per_out_channel", "unsupported", {"num_bits": (2, 1), "axis": 0}),
    ],
)
def test_fp4_on_the_cpu_is_skipped_in_modelopts_words(skipped, granularity, status, weight):
    assert skipped[case_id("wfp4_afp8", granularity)] == (status, modelopts_words(weight))


def test_an_overlay_that_touches_only_what_the_pair_disables_is_skipped(skipped):
    status, reason = skipped[case_id("wint8_afp16", "a_per_token_dynamic")]
    assert status == "no-effect"
    assert "*input_quantizer" in reason


def test_exactly_what_cannot_run_is_skipped(skipped, sweep):
    overlays = ("default", "w_per_out_channel", "w_group128", "a_per_token_dynamic")
    fp4 = {case_id("wfp4_afp8", name) for name in overlays}
    assert skipped.keys() == fp4 | {case_id("wint8_afp16", "a_per_token_dynamic")}
    assert not any("fp4" in path.name for path in sweep.root.rglob("*_quant_manifest.json"))


def test_every_reason_is_on_screen_once_with_its_count(skipped, sweep):
    short_summary = [line for line in sweep.output.splitlines() if line.startswith("SKIPPED")]
    ours = [line for line in sweep.output.splitlines() if line.startswith("  skipped")]
    reasons = {f"{status}: {reason}" for status, reason in skipped.values()}
    assert len(short_summary) == len(ours) == len(reasons)
    for reason in reasons:
        count = sum(f"{status}: {why}" == reason for status, why in skipped.values())
        (line,) = [line for line in short_summary if line.endswith(reason)]
        assert line.startswith(f"SKIPPED [{count}] cases/test_sensitivity.py:")
        (line,) = [line for line in ours if line.endswith(reason)]
        assert line.split()[1] == str(count)
