"""``aq-harness``: output, exit statuses, and which modules a command may import."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_autoquant import __version__, cli
from pytest_autoquant.cli import doctor
from pytest_autoquant.cli.doctor.check import Check
from pytest_autoquant.reports.write import write_case

DOCS = Path(__file__).resolve().parents[3] / "docs"
COMMANDS = ["list", "render", "compare", "merge", "check-export", "schema", "doctor"]


@pytest.fixture
def reports(tmp_path, manifest):
    """A folder with the manifests of two cases and no layer report."""
    for name in ("default", "w_group64"):
        case_id = manifest.case.case_id.replace(manifest.case.granularity, name)
        case = replace(manifest.case, granularity=name, case_id=case_id)
        write_case(tmp_path, replace(manifest, case=case))
    for path in tmp_path.rglob("layer-sensitivity-report.*"):
        path.unlink()
    return tmp_path


def test_package_declares_the_command():
    # A checkout may hold an egg-info beside the installed metadata.
    scripts = {
        (script.group, script.value): script
        for distribution in importlib.metadata.distributions(name="pytest-autoquant")
        for script in distribution.entry_points.select(name="aq-harness")
    }
    assert scripts.keys() == {("console_scripts", "pytest_autoquant.cli:main")}
    assert scripts["console_scripts", "pytest_autoquant.cli:main"].load() is cli.main


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"aq-harness {__version__}\n")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    listed = re.findall(r"^    ([\w-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("rendr", "x"), "invalid choice: 'rendr'"),
        (("render",), "the following arguments are required: DIR"),
        (("check-export",), "the following arguments are required: DIR"),
        (("schema", "case"), "invalid choice: 'case'"),
        (("doctor", "x"), "unrecognized arguments: x"),
        (("list", "--sizes=small"), "unrecognized arguments: --sizes=small"),
        (("list", "--pair"), "unrecognized arguments: --pair"),
    ],
)
def test_wrong_usage_exits_2_with_argparse_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_render_writes_layer_reports_and_summary(reports, capsys):
    assert cli.main(["render", str(reports)]) == 0
    assert capsys.readouterr().out == (
        f"{reports}: 2 measured, 0 aliases, 0 failed, 0 skipped, 0 structure cases\n"
        f"wrote {reports / 'index.html'}\n"
    )
    assert len(list(reports.rglob("layer-sensitivity-report.md"))) == 2
    assert json.loads((reports / "summary.json").read_text())["counts"]["measured"] == 2


def test_render_reports_a_broken_manifest_and_renders_the_rest(reports, capsys):
    broken, _ = sorted(reports.rglob("*_quant_manifest.json"))
    broken.write_text("{")
    assert cli.main(["render", str(reports)]) == 1
    left_out, counts, wrote = capsys.readouterr().out.splitlines()
    assert left_out.startswith(f"left out: {broken.relative_to(reports).as_posix()}: is not JSON")
    assert counts.startswith(f"{reports}: 1 measured, ")
    assert wrote == f"wrote {reports / 'index.html'}"
    assert len(list(reports.rglob("layer-sensitivity-report.md"))) == 1


def test_render_of_a_missing_folder_is_a_one_line_error(tmp_path, capsys):
    assert cli.main(["render", str(tmp_path / "away")]) == 2
    assert capsys.readouterr() == (
        "",
        f"aq-harness: {tmp_path / 'away'}: no such folder; give one that holds manifests\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_render_of_an_empty_folder_exits_2_and_writes_nothing(tmp_path, capsys):
    assert cli.main(["render", str(tmp_path)]) == 2
    said = f"aq-harness: {tmp_path}: holds no manifest; run some cases first\n"
    assert capsys.readouterr() == ("", said)
    assert list(tmp_path.iterdir()) == []


def test_render_escapes_a_folder_name_that_is_not_text(reports, aq_harness):
    folder = reports / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system accepts only UTF-8 names")
    (folder / "broken_autoquant_lm_quant_manifest.json").write_text("{")
    done = aq_harness("render", reports)
    assert done.returncode == 1
    assert "caf\\udce9" in done.stdout
    assert "Traceback" not in done.stderr


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def test_output_in_an_ascii_locale_is_escaped(reports, aq_harness):
    renamed = reports.with_name("r\u00e9sum\u00e9")
    reports.rename(renamed)
    done = aq_harness("render", renamed, environment=ASCII)
    assert (done.returncode, done.stderr) == (0, "imported []\n")
    assert re.search(r"r[\\\w]+sum[\\\w]+: 2 measured, ", done.stdout)
    assert done.stdout.isascii()
    other = aq_harness("compare", renamed, renamed, environment=ASCII)
    assert (other.returncode, other.stderr) == (0, "imported []\n")
    missing = aq_harness("render", renamed / "\u6f22", environment=ASCII)
    assert missing.returncode == 2
    assert "no such folder" in missing.stderr
    assert missing.stderr.isascii()


def export_without_quantization(folder, *names):
    """Write an export of Qwen3-VL whose tensors are one BF16 element each."""
    header = {
        name: {"dtype": "BF16", "shape": [1, 1], "data_offsets": [2 * place, 2 * place + 2]}
        for place, name in enumerate(names)
    }
    start = json.dumps(header).encode()
    config = {"architectures": ["Qwen3VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(
        len(start).to_bytes(8, "little") + start + bytes(2 * len(names))
    )
    return folder


def test_check_export_of_a_valid_export_exits_0(tmp_path, capsys):
    folder = export_without_quantization(tmp_path, "lm_head.weight")
    assert cli.main(["check-export", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{folder}: no quantization, 0 of 1 linears quantized\n")


def test_check_export_of_an_invalid_export_exits_1_without_torch(tmp_path, base_install):
    folder = export_without_quantization(tmp_path, "lm_head.weight", "lm_head.weight_scale")
    done = base_install("check-export", folder)
    assert (done.returncode, done.stderr) == (1, "")
    violation, counts, rules = done.stdout.splitlines()
    assert violation.startswith("exclusion: lm_head.weight ")
    assert counts == f"{folder}: no quantization, 1 of 1 linears quantized"
    assert "exclusion" in rules


def test_check_export_of_a_folder_without_config_is_a_one_line_error(tmp_path, capsys):
    assert cli.main(["check-export", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"aq-harness: {tmp_path / 'config.json'}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("record", "document"),
    [
        ("sensitivity", "manifest.schema.json"),
        ("scheme", "scheme_manifest.schema.json"),
        ("summary", "session_summary.schema.json"),
    ],
)
def test_schema_prints_the_documented_schema(record, document, capsys):
    assert cli.main(["schema", record]) == 0
    assert capsys.readouterr().out == (DOCS / document).read_text()


@pytest.mark.parametrize(("status", "exit_status"), [("ok", 0), ("warning", 0), ("missing", 1)])
def test_doctor_exits_1_if_a_check_is_missing(monkeypatch, capsys, status, exit_status):
    def examine(announce):
        announce("looking")
        return (Check(name="torch", status=status, found="2.13.0"),)

    monkeypatch.setattr(doctor, "examine", examine)
    assert cli.main(["doctor"]) == exit_status
    shown = capsys.readouterr()
    assert shown.err == "aq-harness: looking\n"
    assert shown.out.splitlines()[2].split() == ["torch", status, "2.13.0"]


def test_ctrl_c_exits_130_without_a_traceback(monkeypatch, capsys):
    def interrupt(announce):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "")


def test_closed_pipe_exits_1_without_a_traceback(reports, aq_harness):
    read, write = os.pipe()
    os.close(read)
    done = aq_harness("render", reports, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "imported []\n")


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("list", "--help"), ("schema", "sensitivity"), ("render",)],
    ids=" ".join,
)
def test_command_imports_no_torch(reports, arguments, aq_harness):
    arguments = (*arguments, reports) if arguments == ("render",) else arguments
    done = aq_harness(*arguments)
    assert (done.returncode, done.stderr) == (0, "imported []\n")


def test_base_install_renders_and_names_the_extra_for_list(reports, base_install):
    rendered = base_install("render", reports)
    assert (rendered.returncode, rendered.stderr) == (0, "")
    assert rendered.stdout.startswith(f"{reports}: 2 measured, ")
    listed = base_install("list")
    assert (listed.returncode, listed.stdout) == (2, "")
    assert listed.stderr == (
        "aq-harness: list needs torch, transformers, modelopt, which this Python does "
        "not have; install the extra: pip install 'pytest-autoquant[measure]'\n"
    )


def test_module_runs_as_a_script():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest_autoquant.cli", "render", "away"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    message = "aq-harness: away: no such folder; give one that holds manifests\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
