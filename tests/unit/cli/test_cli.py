"""``aq-harness``: output, exit statuses, and which modules a command may import."""

import importlib.metadata
import json
import os
import re
from pathlib import Path

import pytest
from builders import with_case_names
from pytest_autoquant import __version__, cli
from pytest_autoquant.cli import doctor
from pytest_autoquant.cli.doctor.check import Check
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def reports(tmp_path, manifest):
    """A folder with the manifests of two cases and no layer report."""
    for name in ("default", "w_group64"):
        path = tmp_path / with_case_names(manifest, granularity=name).path
        write_atomic(path, dump_manifest(with_case_names(manifest, granularity=name)))
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


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "the following arguments are required: COMMAND"),
        (("rendr", "x"), 2, "invalid choice: 'rendr'"),
        (("render",), 2, "the following arguments are required: DIR"),
        (("check-export",), 2, "the following arguments are required: DIR"),
        (("schema", "case"), 2, "invalid choice: 'case'"),
        (("doctor", "x"), 2, "unrecognized arguments: x"),
        (("list", "--sizes=small"), 2, "unrecognized arguments: --sizes=small"),
        (("list", "--pair"), 2, "unrecognized arguments: --pair"),
        (("--version",), 0, f"aq-harness {__version__}\n"),
    ],
)
def test_argparse_answers_wrong_usage_and_version(arguments, status, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == status
    assert message in "".join(capsys.readouterr())


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    ([\w-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert listed == [
        *("list", "render", "compare", "merge", "select", "frontier", "recipe"),
        *("check-export", "schema", "doctor"),
    ]


def test_render_writes_layer_reports_and_summary(reports, capsys):
    assert cli.main(["render", str(reports)]) == 0
    assert capsys.readouterr().out == (
        f"{reports}: 2 measured, 0 aliases, 0 failed, 0 skipped, 0 structure cases\n"
        f"wrote {reports / 'index.html'}\n"
    )
    assert len(list(reports.rglob("layer-sensitivity-report.md"))) == 2
    assert json.loads((reports / "summary.json").read_text())["counts"]["measured"] == 2


def test_render_names_a_broken_manifest_and_renders_the_rest(reports, capsys):
    broken, _ = sorted(reports.rglob("*_quant_manifest.json"))
    broken.write_text("{")
    assert cli.main(["render", str(reports)]) == 1
    left_out, counts, wrote = capsys.readouterr().out.splitlines()
    assert left_out.startswith(f"left out: {broken.relative_to(reports).as_posix()}: is not JSON")
    assert counts.startswith(f"{reports}: 1 measured, ")
    assert wrote == f"wrote {reports / 'index.html'}"
    assert len(list(reports.rglob("layer-sensitivity-report.md"))) == 1


def test_render_of_an_empty_folder_exits_2_and_writes_nothing(tmp_path, capsys):
    assert cli.main(["render", str(tmp_path)]) == 2
    said = f"aq-harness: {tmp_path}: holds no manifest; run some cases first\n"
    assert capsys.readouterr() == ("", said)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_input_is_a_one_line_error(tmp_path, capsys):
    away = tmp_path / "away"
    assert cli.main(["render", str(away)]) == 2
    assert capsys.readouterr() == (
        "",
        f"aq-harness: {away}: no such folder; give one that holds manifests\n",
    )
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["check-export", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"aq-harness: {tmp_path / 'config.json'}: ")


def test_output_that_the_locale_cannot_encode_is_escaped(reports, aq_harness):
    folder = reports / "r\u00e9sum\u00e9" / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system accepts only UTF-8 names")
    (folder / "broken_autoquant_lm_quant_manifest.json").write_text("{")
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = aq_harness("render", reports, environment=ascii_only)
    assert (done.returncode, done.stderr) == (1, "imported []\n")
    assert re.search(r"r[\\\w]+sum[\\\w]+/caf\\udce9", done.stdout)
    assert done.stdout.isascii()
    missing = aq_harness("render", reports / "\u6f22", environment=ascii_only)
    assert missing.returncode == 2
    assert "no such folder" in missing.stderr
    assert missing.stderr.isascii()


def test_closed_pipe_exits_1_without_a_traceback(reports, aq_harness):
    read, write = os.pipe()
    os.close(read)
    done = aq_harness("render", reports, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "imported []\n")


def test_help_of_list_imports_no_torch(aq_harness):
    done = aq_harness("list", "--help")
    assert (done.returncode, done.stderr) == (0, "imported []\n")


def test_base_install_runs_all_but_list_and_names_its_extra(reports, base_install):
    rendered = base_install("render", reports)
    assert (rendered.returncode, rendered.stderr) == (0, "")
    assert rendered.stdout.startswith(f"{reports}: 2 measured, ")
    assert base_install("schema", "sensitivity").returncode == 0
    page = reports / "compared.html"
    compared = base_install("compare", reports, reports, "--html", page)
    assert (compared.returncode, compared.stderr) == (0, "")
    assert compared.stdout.startswith("2 cases in both runs, ")
    assert compared.stdout.endswith(f"\nwrote {page}\n")
    assert page.is_file()
    listed = base_install("list")
    assert (listed.returncode, listed.stdout) == (2, "")
    assert listed.stderr == (
        "aq-harness: list needs torch, transformers, modelopt, accelerate, which this Python does "
        "not have; install the extra: pip install 'pytest-autoquant[measure]'\n"
    )


def export_without_quantization(folder, *names):
    """Write an export of a model without layers, whose tensors are one BF16 element each."""
    names = ("model.embed_tokens.weight", "model.norm.weight", *names)
    header = {
        name: {
            "dtype": "BF16",
            "shape": [1] if "norm" in name else [1, 1],
            "data_offsets": [2 * place, 2 * place + 2],
        }
        for place, name in enumerate(names)
    }
    start = json.dumps(header).encode()
    numbers = dict.fromkeys(("hidden_size", "vocab_size"), 1) | {"num_hidden_layers": 0}
    config = {"architectures": ["MistralForCausalLM"], **numbers}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
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
