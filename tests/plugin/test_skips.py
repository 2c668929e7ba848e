"""What cannot run is skipped with the status that holds and ModelOpt's own words."""

import json
import subprocess
import sys

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


WORDS = """
import contextlib, copy, io, json, torch
import modelopt.torch.quantization as mtq

def words(weight):
    config = copy.deepcopy(mtq.W4A8_MXFP4_FP8_CFG)
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*weight_quantizer":
            entry["cfg"] = weight
    model, batch = torch.nn.Sequential(torch.nn.Linear(128, 128)), torch.ones(2, 128)
    try:
        mtq.quantize(model, config, forward_loop=lambda m: m(batch))(batch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

blocks = {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}
with contextlib.redirect_stdout(io.StringIO()):
    found = {
        "default": words({"num_bits": (2, 1), "block_sizes": blocks}),
        "w_per_out_channel": words({"num_bits": (2, 1), "axis": 0}),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def modelopts_words():
    """What ModelOpt raises for W4A8_MXFP4_FP8_CFG on a CPU, by granularity of the weights.

    In a process of its own: its first failure to load an extension reads otherwise than later ones.
    """
    done = subprocess.run(
        [sys.executable, "-c", WORDS], check=True, capture_output=True, text=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


@WITHOUT_CUDA
@pytest.mark.parametrize(
    ("granularity", "status"), [("default", "needs-cuda"), ("w_per_out_channel", "unsupported")]
)
def test_fp4_on_the_cpu_is_skipped_in_modelopts_words(
    skipped, modelopts_words, granularity, status
):
    assert skipped[case_id("wfp4_afp8", granularity)] == (status, modelopts_words[granularity])


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
