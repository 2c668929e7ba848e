"""``aq-harness list``: the support matrix and its errors."""

import re

import pytest
import torch
from odd_model import save_odd_model
from pytest_autoquant import cli


@pytest.fixture
def listed(capsys, tmp_path, monkeypatch):
    """Run ``aq-harness list`` on the CPU in an empty folder; return its lines."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["list", "--device=cpu", *arguments]) == 0
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def odd_model(tmp_path_factory):
    return save_odd_model(tmp_path_factory.mktemp("odd") / "odd-model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts the statuses of a CPU-only machine")
def test_matrix_has_a_status_per_cell_and_the_cells_of_each_reason(listed):
    lines = listed(
        "--pairs=wfp4_afp8,wint8_afp16,wint4_aint8",
        "--granularities=default,w_per_out_channel,w_group128,a_per_token_dynamic",
    )
    rows = {cells[0]: cells[1:] for cells in (re.split(r"  +", line.strip()) for line in lines)}
    assert lines[0] == "on cpu:"
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


def test_widths_that_block_sizes_do_not_divide_are_listed_once(listed, odd_model):
    lines = listed(
        f"--model={odd_model}",
        "--pairs=wint4_afp16,wint8_afp16",
        "--granularities=default,w_group64,w_per_tensor",
    )
    in_64 = "default on wint4, w_group64 on wint4, w_group64 on wint8"
    layer = "model.layers.0"
    assert [line for line in lines if "padded" in line] == [
        f"64 wide, padded to 128: 1 linear, such as {layer}.self_attn.o_proj; default on wint4",
        f"96 wide, padded to 128: 5 linears, such as {layer}.self_attn.q_proj; {in_64}",
        f"200 wide, padded to 256: 1 linear, such as {layer}.mlp.down_proj; {in_64}",
    ]


def test_list_accepts_user_yaml_and_both_spellings_of_an_option(tmp_path, capsys):
    folder = tmp_path / "quant_granularity"
    folder.mkdir()
    (folder / "w_group32.yaml").write_text(
        'name: w_group32\nquant_cfg_overrides:\n  "*weight_quantizer":\n    block_sizes: {-1: 32}\n'
    )
    arguments = ("--conf", tmp_path, "--device=cpu", "--aq-pairs=wint4_afp16")
    assert cli.main(["list", *map(str, arguments), "--granularities=w_group32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["pair", "(*", "experimental)", "w_group32"]
    assert lines[3].split() == ["wint4_afp16", "ok"]


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--pairs=wint3_afp16", "pair 'wint3_afp16'"),
        ("--pairs=", "--pairs: "),
        ("--granularities=w_group96", "overlay 'w_group96'"),
        ("--dtype=fp8", "--dtype: 'fp8'"),
        ("--device=tpu", "'tpu'"),
        ("--conf=away", "--aq-conf away: "),
        ("--model=./away", "model folder ./away: "),
    ],
)
def test_bad_option_value_is_a_one_line_error(argument, named, capsys):
    assert cli.main(["list", argument]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("aq-harness: ")
    assert named in shown.err
    assert shown.err.count("\n") == 1
