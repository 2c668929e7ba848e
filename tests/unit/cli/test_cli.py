"""The command line ``aq-harness``: what it prints, its exit statuses, and what it may import."""

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
from pytest_autoquant.cli.doctor import Check
from pytest_autoquant.reports.write import write_case

HEAVY = ("torch", "transformers", "modelopt")
BLOCKED = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ImportError(name + " is not on this machine")

sys.meta_path.insert(0, Absent())
"""
RUN = """
import sys
from pytest_autoquant.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
heavy = sorted({"torch", "transformers", "modelopt"} & set(sys.modules))
print("imported", heavy, file=sys.stderr)
sys.exit(status)
"""


def run(script, *arguments, **settings):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **settings,
    )


@pytest.fixture
def reports(tmp_path, manifest):
    """A folder with two cases and no layer report."""
    for name in ("default", "w_group64"):
        case_id = manifest.case.case_id.replace(manifest.case.granularity, name)
        case = replace(manifest.case, granularity=name, case_id=case_id)
        write_case(tmp_path, replace(manifest, case=case))
    for path in tmp_path.rglob("layer-sensitivity-report.*"):
        path.unlink()
    return tmp_path


def test_the_package_installs_the_command():
    # A checkout may hold an egg-info beside what is installed.
    installed = importlib.metadata.distributions(name="pytest-autoquant")
    scripts = [
        script
        for distribution in installed
        for script in distribution.entry_points.select(name="aq-harness")
    ]
    named = {(script.group, script.value) for script in scripts}
    assert named == {("console_scripts", "pytest_autoquant.cli:main")}
    assert scripts[0].load() is cli.main


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"aq-harness {__version__}\n")


def test_the_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    named = re.findall(r"^    ([\w-]+)(?: |$)", shown, re.MULTILINE)
    assert named == ["list", "render", "compare", "merge", "check-export", "doctor"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("rendr", "x"),
        ("render",),
        ("check-export",),
        ("doctor", "x"),
        ("list", "--sizes=small"),
        ("list", "--pair"),
    ],
)
def test_a_command_line_that_is_none_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "aq-harness" in capsys.readouterr().err


def test_render_rebuilds_the_layer_reports_and_the_summary(reports, capsys):
    assert cli.main(["render", str(reports)]) == 0
    assert capsys.readouterr().out == (
        f"{reports}: 2 measured, 0 aliases, 0 failed, 0 skipped, 0 structure cases\n"
        f"wrote {reports / 'index.html'}\n"
    )
    assert len(list(reports.rglob("layer-sensitivity-report.md"))) == 2
    assert json.loads((reports / "summary.json").read_text())["counts"]["measured"] == 2


def test_render_names_what_it_left_out_and_rebuilds_the_rest(reports, capsys):
    broken, _ = sorted(reports.rglob("*_quant_manifest.json"))
    broken.write_text("{")
    assert cli.main(["render", str(reports)]) == 1
    left_out, counts, wrote = capsys.readouterr().out.splitlines()
    assert left_out.startswith(f"left out: {broken.relative_to(reports).as_posix()}: is not JSON")
    assert counts.startswith(f"{reports}: 1 measured, ")
    assert wrote == f"wrote {reports / 'index.html'}"
    assert len(list(reports.rglob("layer-sensitivity-report.md"))) == 1


def test_a_folder_that_is_not_there_is_one_line_and_no_traceback(tmp_path, capsys):
    assert cli.main(["render", str(tmp_path / "away")]) == 2
    assert capsys.readouterr() == (
        "",
        f"aq-harness: {tmp_path / 'away'}: no such folder; give one that holds manifests\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_manifests_gives_a_page_that_says_so(tmp_path, capsys):
    assert cli.main(["render", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    left_out, counts, wrote = shown.out.splitlines()
    assert left_out == (
        "left out: no *_autoquant_lm_quant_manifest.json is here; run some cases first"
    )
    assert counts == (f"{tmp_path}: 0 measured, 0 aliases, 0 failed, 0 skipped, 0 structure cases")
    assert wrote == f"wrote {tmp_path / 'index.html'}"
    assert "is here; run some cases first" in (tmp_path / "index.html").read_text()


def test_a_folder_whose_name_is_no_text_is_printed_escaped(reports):
    folder = reports / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system wants text")
    (folder / "broken_autoquant_lm_quant_manifest.json").write_text("{")
    done = run(RUN, "render", reports)
    assert done.returncode == 1
    assert "caf\\udce9" in done.stdout
    assert "Traceback" not in done.stderr


def test_list_prints_what_pytest_prints(tmp_path):
    chosen = (
        "device=cpu",
        "pairs=wint8_afp16,wfp4_afp8",
        "granularities=default,w_per_out_channel",
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--aq-list"]
    theirs = subprocess.run(
        [*command, *(f"--aq-{each}" for each in chosen)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ours = run(RUN, "list", *(f"--{each}" for each in chosen), cwd=tmp_path)
    assert (ours.returncode, theirs.returncode) == (0, 0)
    assert ours.stdout == theirs.stdout
    assert ours.stdout.startswith("on cpu:\npair (* experimental) ")
    assert list(tmp_path.iterdir()) == []


def test_list_takes_the_users_yaml_and_both_spellings_of_an_option(tmp_path, capsys):
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
    ("arguments", "message"),
    [
        (("--pairs=wint3_afp16",), "pair 'wint3_afp16' is unknown"),
        (("--pairs=",), "--pairs: names nothing"),
        (("--granularities=w_group96",), "overlay 'w_group96' is unknown"),
        (("--dtype=fp8",), "--dtype: 'fp8' is not allowed; give auto, fp32, bf16, fp16"),
        (("--device=tpu",), "unknown device 'tpu'; use auto, cpu, cuda or cuda:N"),
        (("--conf=away",), "--aq-conf away: no such folder"),
        (("--model=./away",), "model folder ./away: does not exist"),
    ],
)
def test_bad_input_to_the_list_is_one_line_and_no_traceback(arguments, message, capsys):
    assert cli.main(["list", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"aq-harness: {message}")
    assert shown.err.count("\n") == 1


def export_without_quantization(folder, *names):
    """Write tensors of one BF16 element as an export of Qwen3-VL."""
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


def test_an_export_that_breaks_no_rule_is_said_to_break_none(tmp_path, capsys):
    folder = export_without_quantization(tmp_path, "lm_head.weight")
    assert cli.main(["check-export", str(folder)]) == 0
    assert capsys.readouterr() == (
        f"{folder}: no quantization, 0 of 1 linears quantized\n"
        "no violation of the 9 static rules found; not tried in vLLM\n",
        "",
    )


def test_an_export_that_breaks_a_rule_fails_where_torch_cannot_be_imported(tmp_path):
    folder = export_without_quantization(tmp_path, "lm_head.weight", "lm_head.weight_scale")
    done = run(BLOCKED + RUN, "check-export", folder)
    assert (done.returncode, done.stderr) == (1, "imported []\n")
    assert done.stdout == (
        "exclusion: lm_head.weight is quantized (BF16, weight_scale), but neither config declares "
        "a quantization\n"
        f"{folder}: no quantization, 1 of 1 linears quantized\n"
        "violations: 1, of the rules exclusion; not tried in vLLM\n"
    )


def test_a_folder_that_is_no_export_is_one_line_and_no_traceback(tmp_path, capsys):
    assert cli.main(["check-export", str(tmp_path)]) == 2
    assert capsys.readouterr() == (
        "",
        f"aq-harness: {tmp_path / 'config.json'}: no such file; give a complete folder "
        "written by export_hf_checkpoint\n",
    )


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("warning", 0), ("missing", 1)])
def test_the_doctors_exit_status_says_whether_autoquant_can_run(monkeypatch, capsys, state, status):
    def examine(announce):
        announce("looking")
        return (Check(name="torch", status=state, found="2.13.0"),)

    monkeypatch.setattr(doctor, "examine", examine)
    assert cli.main(["doctor"]) == status
    shown = capsys.readouterr()
    assert shown.err == "aq-harness: looking\n"
    assert shown.out.splitlines()[2].split() == ["torch", state, "2.13.0"]


def test_an_interrupted_command_shows_no_traceback(monkeypatch):
    def interrupt(announce):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    assert cli.main(["doctor"]) == 130


def test_a_reader_that_has_seen_enough_is_no_error(reports):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", RUN, "render", str(reports)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "imported []\n")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("list", "--help"), ("render",)]
)
def test_what_needs_no_torch_imports_none(reports, arguments):
    arguments = (*arguments, reports) if arguments == ("render",) else arguments
    done = run(RUN, *arguments)
    assert (done.returncode, done.stderr) == (0, "imported []\n")


def test_the_doctor_looks_at_this_environment_and_the_guard_sees_what_it_imports(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # where there is a GPU: builds no extension
    done = run(RUN, "doctor")
    assert done.returncode == 0
    assert re.search(r"^nvidia-modelopt +ok +0\.47\.", done.stdout, re.MULTILINE)
    assert re.search(r"^wint8_afp16 on cpu +ok +runs$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\nAutoQuant can run here\n")
    assert done.stderr.splitlines() == [
        "aq-harness: running ModelOpt's quantizers on cpu",
        "imported ['modelopt', 'torch', 'transformers']",
    ]


def test_reports_are_rendered_where_torch_cannot_be_imported(reports):
    done = run(BLOCKED + RUN, "render", reports)
    assert (done.returncode, done.stderr) == (0, "imported []\n")
    assert done.stdout.startswith(f"{reports}: 2 measured, ")


def test_the_doctor_says_that_torch_cannot_be_imported(reports):
    done = run(BLOCKED + RUN, "doctor")
    assert (done.returncode, done.stderr) == (1, "imported []\n")
    assert re.search(
        r"^import torch +missing +ImportError: torch is not on this machine$",
        done.stdout,
        re.MULTILINE,
    )
    assert "import torch:\n    until it can be imported, nothing that needs it" in done.stdout


def test_the_module_runs_as_a_script():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest_autoquant.cli", "render", "away"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    message = "aq-harness: away: no such folder; give one that holds manifests\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
