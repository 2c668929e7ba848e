"""Schemes of a mixture of experts: quantized, exported and read back, or refused before work."""

import pytest
import torch
from builders import load_tiny, model_state, save_mixture, settings_of
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.verify import verify_checkpoint
from pytest_autoquant.export.pipeline import SchemeRunner
from pytest_autoquant.modelopt_support.status import SUPPORTED
from pytest_autoquant.models.registry import find_model
from pytest_autoquant.scoring.runner import MeasurementRunner
from safetensors.torch import load_file, save_file
from scheme_model import LAYERS, batches_of, export_scheme, formats_of, held_out_of, mine

FIRST, SECOND = (f"{LAYERS}.{layer}.mlp.experts" for layer in range(2))
PARTS = ("gate_proj", "up_proj", "down_proj")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def unsaved(tmp_path_factory):
    """A folder with a config and a tokenizer, no weights."""
    return save_mixture(tmp_path_factory.mktemp("unsaved"), layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as transformers saves it."""
    folder = save_mixture(tmp_path_factory.mktemp("saved"), layers=2)
    load_tiny(str(folder), random_seed=0).module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(folder):
    return load_tiny(str(folder))


@pytest.fixture(scope="module")
def calibration(saved):
    return batches_of(saved, load_captions(None, "small"), 4)


def inputs_of(stored):
    """Return the input scales of an export, by linear."""
    suffix = ".input_scale"
    return {n.removesuffix(suffix): t.item() for n, t in stored.items() if n.endswith(suffix)}


@pytest.mark.parametrize("pair", ["wfp8_afp8", "wint8_aint8"])
def test_export_of_quantized_experts_is_read_back(saved, folder, calibration, tmp_path, pair):
    before = model_state(saved.module)
    formats = formats_of((pair, (FIRST,), (f"{LAYERS}.0.self_attn.o_proj",)))
    source = find_model(str(folder), random_weights=False)
    checked = export_scheme(saved, source, formats, calibration, tmp_path)
    assert model_state(saved.module) == before
    assert checked.num_quantized == 4 * len(PARTS) + 1
    stored = load_file(tmp_path / WEIGHTS)
    dtype = torch.float8_e4m3fn if pair == "wfp8_afp8" else torch.int8
    parts = [f"{FIRST}.{expert}.{part}" for expert in range(4) for part in PARTS]
    assert {stored[f"{part}.weight"].dtype for part in parts} == {dtype}
    scales = {part: stored[f"{part}.weight_scale"] for part in parts}
    if pair == "wfp8_afp8":
        assert scales[parts[0]] == scales[parts[1]] != scales[parts[2]]
    stored[f"{FIRST}.2.up_proj.weight"][5, 7] = 1
    save_file(stored, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=f"{FIRST}.2.up_proj"):
        verify_checkpoint(saved, formats, inputs_of(stored), tmp_path, None)


def test_unquantized_experts_of_random_weights_are_compared(unsaved, calibration, tmp_path):
    model = load_tiny(str(unsaved), random_seed=0)
    source = find_model(str(unsaved), random_weights=True)
    formats = formats_of(("wfp8_afp8", (SECOND,)))
    checked = export_scheme(model, source, formats, calibration, tmp_path)
    assert checked.num_quantized == 4 * len(PARTS)
    stored = load_file(tmp_path / WEIGHTS)
    stored[f"{FIRST}.3.gate_proj.weight"][0, 0] += 1
    save_file(stored, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=rf"{FIRST}.3.gate_proj, which is not quantized"):
        verify_checkpoint(model, formats, inputs_of(stored), tmp_path, None)


def bench_of(folder):
    settings = settings_of(device="cpu", model=str(folder), weights="random", cost="active")
    return MeasurementRunner(
        settings, find_model(str(folder), random_weights=True), lambda *_: None, print
    )


def runner(bench, root):
    return SchemeRunner(
        bench,
        held_out=held_out_of("A dog runs over the beach.", "Two cats sleep on a red sofa."),
        target=None,
        root=root,
        may_replace=False,
    )


def test_scheme_of_a_mixture_is_derived_exported_and_keeps_to_the_active_budget(unsaved, tmp_path):
    schemes = runner(bench_of(unsaved), tmp_path)
    case = mine("wfp8_afp8", amount=12.0)
    assert schemes.support(case) == SUPPORTED
    manifest = schemes.derive(case)
    assert manifest.scheme.cost == "active"
    assert manifest.allocation.active_bits <= 12 < 16
    assert manifest.measured.kl > 0
    quantized = [group for group in manifest.groups if group.format]
    fused = sum(group.name in (FIRST, SECOND) for group in quantized)
    linears = sum(len(group.modules) for group in quantized) - fused
    assert manifest.export.num_quantized == linears + 4 * len(PARTS) * fused
    assert manifest.export.largest_error < 1e-3


def test_format_that_modelopt_cannot_export_of_a_mixture_is_refused_before_any_work(
    unsaved, tmp_path
):
    bench = bench_of(unsaved)
    support = runner(bench, tmp_path).support(mine("wint4_afp16", amount=12.0))
    assert support.reason == (
        "ModelOpt cannot export W4A16_AWQ, which wint4_afp16 becomes, of a mixture of experts such "
        f"as {LAYERS}.0.mlp: NotImplementedError: qwen3vlmoeforconditionalgeneration not supported"
    )
    assert "model" not in vars(bench)
    assert runner(bench, None).support(mine("wfp8_afp8")) == SUPPORTED
