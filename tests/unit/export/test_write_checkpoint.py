"""Checkpoints by ModelOpt: complete, with the source's tokenizer and processor."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from builders import load_tiny
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.errors import ExportError, ModelError
from pytest_autoquant.export.apply_scheme import applied
from pytest_autoquant.export.checkpoint.write import size_in_bytes, write_checkpoint
from pytest_autoquant.models.registry import REGISTRY
from scheme_model import MIXTURE, QKV, batches_of, export_scheme, formats_of, snapshot

SOURCE = REGISTRY["tiny-qwen3-vl"]
FILES = {
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize(
    ("formats", "algorithm", "architectures"),
    [
        (formats_of(("wfp8_afp8", QKV)), "FP8", ["Other"]),
        (formats_of(("wint8_afp16", QKV)), "W8A16", None),
        ((), None, None),
    ],
    ids=["fp8", "int8", "nothing"],
)
def test_checkpoint_is_complete_and_the_model_is_restored(
    tiny, calibration, tmp_path, monkeypatch, formats, algorithm, architectures
):
    monkeypatch.setattr(tiny.module.config, "architectures", architectures)
    before = snapshot(tiny.module)
    with applied(tiny, formats, calibration):
        write_checkpoint(tiny, Path(SOURCE.location), tmp_path)
    assert snapshot(tiny.module) == before
    assert tiny.module.config.architectures is architectures
    assert tiny.module.lm_head.weight is tiny.module.get_input_embeddings().weight
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= FILES
    assert ("hf_quant_config.json" in names) == bool(formats)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert config.get("quantization_config", {}).get("quant_algo") == algorithm
    if formats:
        with pytest.raises(ModelError, match=f"already quantized: config.json says .+{algorithm}"):
            load_tiny(str(tmp_path))


def test_processor_files_of_qwen2_5_vl_are_copied(tmp_path):
    source, model = REGISTRY["tiny-qwen2.5-vl"], load_tiny("tiny-qwen2.5-vl")
    batches = batches_of(model, load_captions(None, "small"), 4)
    formats = formats_of(("wfp8_afp8", (model.linears[0].name,)))
    verified = export_scheme(model, source, formats, batches, tmp_path)
    assert verified.num_quantized == 1
    assert verified.num_identical == len(model.module.state_dict()) - 2
    processor = Path(source.location) / "preprocessor_config.json"
    assert (tmp_path / processor.name).read_bytes() == processor.read_bytes()


def test_failure_in_modelopt_is_an_export_error(tiny, calibration, tmp_path, monkeypatch):
    import modelopt.torch.export

    def fails(module, **_):
        with torch.no_grad():
            module.extra = torch.nn.Linear(1, 1)
        raise RuntimeError("no\nsuch\nexport")

    monkeypatch.setattr(modelopt.torch.export, "export_hf_checkpoint", fails)
    before = snapshot(tiny.module)
    with pytest.raises(ExportError) as error, applied(tiny, MIXTURE, calibration):
        write_checkpoint(tiny, Path(SOURCE.location), tmp_path)
    assert str(error.value) == "ModelOpt cannot export this scheme: RuntimeError: no such export"
    assert snapshot(tiny.module) == before


def test_export_needs_free_space(tiny, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    size = sum(p.numel() * 4 for p in tiny.module.parameters())
    assert size_in_bytes(tiny) == size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, int(size * 1.1) - 1))
    with pytest.raises(ExportError) as error:
        write_checkpoint(tiny, Path(SOURCE.location), tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: the export of tiny-qwen3-vl needs 0.0 GB, 0.0 GB are free; free some, or "
        "give another --aq-report-dir"
    )
    assert list(tmp_path.iterdir()) == []
