"""Formats that quantize on CUDA only, exported and read back; one tampered tensor each is refused.

Run it on a machine with a GPU: ``pytest tests/unit/export/test_export_on_cuda.py``.
"""

from pathlib import Path

import pytest
import torch
from builders import ignore_progress, load_tiny, settings_of
from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.calibration.captions import load_captions, load_held_out
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.apply_scheme import GroupFormat, applied
from pytest_autoquant.export.checkpoint.verify import calibrated_input_scales, verify_checkpoint
from pytest_autoquant.export.checkpoint.write import write_checkpoint
from pytest_autoquant.export.exportable import ExportProbe
from pytest_autoquant.export.pipeline import SchemeRunner
from pytest_autoquant.grid.case import Combination, SchemeCase
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.scoring.runner import MeasurementRunner
from safetensors.torch import load_file, save_file
from scheme_model import DOWN, GATE_UP, OUT, QKV, batches_of, config_of

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="ModelOpt quantizes to NVFP4 and MX formats on CUDA only"
)

SOURCE = Path(REGISTRY["tiny-qwen3-vl"].location)
WEIGHTS = "model.safetensors"
#: What is exported as which algorithm, and the kinds of tensor that a linear of it has.
SCALES = {"weight", "weight_scale"}
FORMATS = {
    "wnvfp4_anvfp4": ("NVFP4", SCALES | {"weight_scale_2", "input_scale"}),
    "wnvfp4_afp16": ("W4A16_NVFP4", SCALES | {"weight_scale_2"}),
    "wfp4_afp4": ("MXFP4", SCALES),
    "wfp4_afp8": ("W4A8_MXFP4_FP8", SCALES | {"input_scale"}),
    "mxfp8": ("MXFP8", SCALES),
    "fp8_blocks": ("FP8_PB_WO", SCALES),
    "wfp8_afp8": ("FP8", SCALES | {"input_scale"}),
    "wfp8_afp8-recipe_match_channel_token": ("FP8_PER_CHANNEL_PER_TOKEN", SCALES),
    "wint4_afp16": ("W4A16_AWQ", SCALES),
    "wint8_aint8": ("W8A8_SQ_PER_CHANNEL", SCALES | {"input_scale"}),
}


def group(candidate, modules):
    return GroupFormat(modules=modules, config=config_of(candidate))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request):
    return load_tiny(device=torch.device("cuda"), dtype=request.param)


@pytest.fixture(scope="module")
def batches(model):
    return batches_of(model, load_captions(None, "small"), 4)


@pytest.fixture
def exported(model, batches, tmp_path):
    """Export groups; return what verifies the checkpoint again, and its tensors."""

    def export(*formats):
        with applied(model, formats, batches):
            scales = calibrated_input_scales(model, formats)
            write_checkpoint(model, SOURCE, tmp_path)
        tensors = load_file(tmp_path / WEIGHTS)
        return lambda: verify_checkpoint(model, formats, scales, tmp_path, SOURCE), tensors

    return export


@pytest.mark.parametrize("candidate", FORMATS)
def test_probe_names_the_algorithm_and_finds_the_export_readable(candidate):
    probe = ExportProbe(torch.device("cuda"))
    assert probe.problem(config_of(candidate)) is None
    assert probe.algorithm(config_of(candidate)) == FORMATS[candidate][0]


def test_nvfp4_weights_with_fp8_activations_are_refused():
    """ModelOpt fake-quantizes them in blocks of 16 and stores blocks of 32."""
    problem = ExportProbe(torch.device("cuda")).problem(config_of("wnvfp4_afp8"))
    assert problem.startswith("ModelOpt exports wnvfp4_afp8 with default as W4A8_NVFP4_FP8, but ")
    assert "deviates by" in problem


@pytest.mark.parametrize("candidate", FORMATS)
def test_export_is_the_quantized_model_and_each_tampered_tensor_is_refused(
    exported, tmp_path, candidate
):
    verify, tensors = exported(group(candidate, QKV), group(candidate, OUT))
    verified = verify()
    assert verified.num_quantized == 4
    assert verified.largest_error <= 1e-3
    name = QKV[1]
    stored = {each.rpartition(".")[2] for each in tensors if each.startswith(f"{name}.")}
    assert stored == FORMATS[candidate][1]
    for kind in sorted(stored):
        changed = dict(tensors)
        changed[f"{name}.{kind}"] = tampered(tensors[f"{name}.{kind}"])
        save_file(changed, tmp_path / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(ExportError, match=f"the export is not the quantized model: .*{name}"):
            verify()
        changed.pop(f"{name}.{kind}")
        save_file(changed, tmp_path / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(ExportError, match=name):
            verify()


def tampered(tensor):
    """Double scales; turn the largest magnitudes of a weight into zero."""
    if tensor.dtype == torch.float32:
        return tensor * 2
    if tensor.dim() == 2 and tensor.dtype == torch.float8_e4m3fn:
        return (tensor.float() / 2).to(tensor.dtype)
    return torch.zeros_like(tensor)


@pytest.mark.parametrize("candidates", [("wnvfp4_anvfp4", "wfp8_afp8"), tuple(FORMATS)[:4]])
def test_mix_of_formats_is_read_back(exported, candidates):
    groups = (QKV, OUT, GATE_UP, DOWN)
    verify, _ = exported(*map(group, candidates, groups))
    verified = verify()
    assert verified.num_quantized == sum(len(each) for each in groups[: len(candidates)])
    assert verified.largest_error <= 1e-3


@pytest.mark.parametrize(
    ("candidates", "amount"), [(("wnvfp4_anvfp4", "wfp8_afp8"), 6.0), (("wnvfp4_anvfp4",), 4.6)]
)
def test_scheme_in_nvfp4_is_exported_for_vllm(tmp_path, candidates, amount):
    settings = settings_of(device="cuda")
    bench = MeasurementRunner(settings, REGISTRY["tiny-qwen3-vl"], ignore_progress, print)
    configs = [config_of(name) for name in candidates]
    case = SchemeCase(
        model="tiny-qwen3-vl",
        scheme=Scheme(name="mine", candidates=candidates, measure="effective_bits", amount=amount),
        candidates=tuple(Combination(pair=c.pair, granularity=c.granularity) for c in configs),
        size="small",
    )
    schemes = SchemeRunner(
        bench, held_out=load_held_out(None), target="vllm", root=tmp_path, may_replace=False
    )
    assert schemes.support(case).is_supported
    manifest = schemes.derive(case)
    assert {group.format for group in manifest.groups} == set(candidates)
    assert manifest.allocation.effective_bits <= amount
    assert manifest.export.num_quantized == len(bench.model.linears)
    assert manifest.export.largest_error <= 1e-3
    assert (manifest.export.violations, manifest.export.not_checked) == ((), None)
    assert 0 < manifest.measured.kl < 1
