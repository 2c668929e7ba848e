"""``--aq-list`` tells what would run here, and runs nothing."""

import re
import shutil
from pathlib import Path

import pytest
import pytest_autoquant
import torch
from pytest_autoquant.manifests.sensitivity_manifest import read_manifest

DATA = Path(pytest_autoquant.__file__).parent / "models" / "data"

EMBEDDED = DATA / "tiny-qwen3-vl"
CANARY = "import pathlib; pathlib.Path(__file__).with_name('canary').touch()\ndef test_it(): pass"
HIDDEN, INTERMEDIATE, HEADS = 96, 200, 64


@pytest.fixture
def listed(project, modelopt):
    """Run ``--aq-list``; return its lines."""

    def run(*arguments):
        project.makepyfile(test_canary=CANARY)
        result = project.runpytest_inprocess("--aq-list", "--aq-device=cpu", *arguments)
        assert result.ret == pytest.ExitCode.OK
        assert not (project.path / "canary").exists()
        assert not (project.path / "reports").exists()
        return result.outlines

    return run


@pytest.fixture
def odd_model(project, modelopt):
    """A causal model whose inputs are 96, 64 and 200 wide, with the embedded tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=HEADS // 2,
        vocab_size=8192,
    )
    folder = project.path / "odd-model"
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
def test_the_matrix_gives_every_cell_its_status_and_every_reason_its_cells(listed):
    lines = listed(
        "--aq-pairs=wfp4_afp8,wint8_afp16,wint4_aint8",
        "--aq-granularities=default,w_per_out_channel,w_group128,a_per_token_dynamic",
    )
    rows = {cells[0]: cells[1:] for cells in (re.split(r"  +", line.strip()) for line in lines)}
    assert rows["pair (* experimental)"] == [
        "default",
        "w_per_out_channel",
        "w_group128",
        "a_per_token_dynamic",
    ]
    assert rows["wint8_afp16"] == ["ok", "=", "ok", "-"]
    assert rows["wint4_aint8 *"] == ["ok", "ok", "=", "ok"]
    assert rows["wfp4_afp8"][:2] == ["cuda", "no"]
    text = "\n".join(lines)
    assert re.search(r"^needs-cuda: \w+Error: .+\n +wfp4_afp8-default\b", text, re.MULTILINE)
    assert re.search(
        r"^unsupported: NotImplementedError: .+\n +wfp4_afp8-w_per_out_channel$", text, re.MULTILINE
    )
    assert re.search(r"^no-effect: .+\n +wint8_afp16-a_per_token_dynamic$", text, re.MULTILINE)
    assert "wint8_afp16-default = wint8_afp16-w_per_out_channel" in lines
    assert "wint4_aint8-default = wint4_aint8-w_group128" in lines


def test_groups_that_do_not_divide_a_width_are_reported_for_the_layer(listed, odd_model):
    lines = listed(
        f"--aq-model={odd_model}",
        "--aq-pairs=wint4_afp16,wint8_afp16",
        "--aq-granularities=default,w_group64,w_per_tensor",
    )
    found = {
        re.fullmatch(r"(\w+ on \w+): model\.layers\.0\.\w+\.(\w+) is (.+)", line).groups()
        for line in lines
        if "padded" in line
    }
    hidden = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    in_64 = {(name, "96 wide, padded to 128") for name in hidden}
    in_64.add(("down_proj", "200 wide, padded to 256"))
    in_128 = in_64 | {("o_proj", "64 wide, padded to 128")}
    assert found == (
        {("default on wint4", *layer) for layer in in_128}
        | {("w_group64 on wint4", *layer) for layer in in_64}
        | {("w_group64 on wint8", *layer) for layer in in_64}
    )


def test_the_embedded_models_widths_fit_every_group(listed):
    assert "padded" not in "\n".join(listed("--aq-pairs=wint4_afp16,wint8_afp16"))


def test_a_measured_layer_with_padded_groups_says_so_in_its_manifest(project, odd_model):
    project.runpytest_inprocess(
        *("-p", "no:cacheprovider", "cases/test_sensitivity.py", "--aq-device=cpu"),
        *(f"--aq-model={odd_model}", "--aq-pairs=wint8_afp16", "--aq-granularities=w_group64"),
        "--aq-sizes=small",
    ).assert_outcomes(passed=1)
    (manifest,) = map(read_manifest, project.path.rglob("*_quant_manifest.json"))
    widths = {layer.in_features: layer.padded_to for layer in manifest.layers.values()}
    assert widths == {HIDDEN: 128, HEADS: None, INTERMEDIATE: 256}
    noted = [note for note in manifest.case.notes if "does not divide" in note]
    assert len(noted) == 2
    assert noted[0].endswith("q_proj and 4 more linears: padded to 128")
    assert "width 200 of" in noted[1]
    assert noted[1].endswith("down_proj: padded to 256")


def test_bad_input_to_the_list_is_a_usage_error(project):
    result = project.runpytest_inprocess("--aq-list", "--aq-pairs=wint3_afp16")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: pair 'wint3_afp16' is unknown*")
