"""``recipe``, ``select`` and ``frontier``: what the page shows, files, and wrong usage."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from pytest_autoquant import cli
from pytest_autoquant.cli import recipe
from pytest_autoquant.recipes.tools import TOOLS

ROOT = Path(__file__).resolve().parents[3]
FP8 = ROOT / "reports" / "baseline" / "tiny-qwen3-vl" / "weight-fp8-act-fp8" / "default"
SHOWN = re.findall(
    r"^```console\n\$ (aq-harness .+)\n((?:.*\n)+?)```$",
    (ROOT / "docs" / "recipes.md").read_text(),
    re.MULTILINE,
)


def test_every_tool_can_be_asked_for():
    assert tuple(TOOLS) == recipe.TOOL_NAMES


def test_page_shows_every_command():
    assert {command.split()[1] for command, _ in SHOWN} == {"recipe", "select", "frontier"}


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=lambda text: text[:40])
def test_page_shows_what_a_command_prints(command, output, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(shlex.split(command)[1:]) == 0
    pattern = re.escape(output).replace("…\\\n", r"(?:.*\n)+")
    assert re.fullmatch(pattern, capsys.readouterr().out)


def test_frontier_is_the_same_as_csv_and_json(tmp_path, capsys):
    path = tmp_path / "new" / "curve.json"
    assert cli.main(["frontier", str(FP8), "--json", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert cli.main(["frontier", str(FP8)]) == 0
    rows = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [{k: float(v) for k, v in row.items()} for row in rows] == json.loads(path.read_text())


def test_refusal_leaves_the_file_as_it_was(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")
    columns = FP8.parent / "w_per_in_channel"
    given = ["recipe", str(columns), "--for", "llm-compressor", "--bits", "12", "-o", str(path)]
    assert cli.main(given) == 2
    assert "whose weights have a scale per input channel" in capsys.readouterr().err
    assert (path.read_text(), len([*tmp_path.iterdir()])) == ("mine", 1)


@pytest.mark.parametrize(
    "command", ["select {} --bits 10", "recipe {} --for modules", "frontier {}"]
)
def test_commands_need_no_torch(command, base_install):
    done = base_install(*command.format(FP8).split())
    assert (done.returncode, done.stderr) == (0, "")
