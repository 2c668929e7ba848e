"""Projects that have the plugin installed and tests of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASE = "wint8_afp16-default-small"
SMALL = (
    "--aq-device=cpu",
    "--aq-sizes=small",
    "--aq-pairs=wint8_afp16",
    "--aq-granularities=default",
)
LOOKALIKE = f"""
import pytest

@pytest.mark.parametrize("x", [1], ids=["{CASE}"])
def test_same_id(x): pass
"""
BOTH = pytest.mark.parametrize("xdist", ["-n0", "-n1"])


@pytest.fixture
def run(tmp_path):
    """Run pytest in a folder of files, in a process of its own."""

    def run_in(files, *arguments, module=True):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        program = [sys.executable, "-m", "pytest"] if module else ["pytest"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [*program, *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run_in


@BOTH
def test_a_test_whose_id_looks_like_a_case_is_not_a_case(run, tmp_path, xdist):
    (tmp_path / "reports").write_text("not a folder")
    done = run({"test_mine.py": LOOKALIKE}, xdist)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 passed" in done.stdout
    assert "autoquant:" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != "") == ["test_mine.py"]


@pytest.mark.parametrize("module", [True, False], ids=["python -m pytest", "pytest"])
def test_a_project_with_a_package_called_harness_keeps_it(run, module):
    files = {
        "harness/__init__.py": "NAME = 'mine'\n",
        "test_mine.py": "import harness\ndef test_it(): assert harness.NAME == 'mine'\n",
        "conftest.py": "",
    }
    done = run(files, module=module)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_conftest_may_declare_an_option_called_gpu_only(run):
    files = {
        "conftest.py": "def pytest_addoption(parser): parser.addoption('--gpu-only', type=int)\n",
        "test_mine.py": "def test_it(request): assert request.config.getoption('gpu_only') == 3\n",
    }
    assert run(files, "--gpu-only=3").returncode == 0


def test_strict_markers_still_catch_an_unregistered_gpu_marker(run):
    files = {"test_mine.py": "import pytest\n@pytest.mark.gpu\ndef test_it(): pass\n"}
    done = run(files, "--strict-markers")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "'gpu' not found in `markers`" in done.stdout


@BOTH
@pytest.mark.parametrize("option", ["--aq-baseline=blessed", "--aq-resume", "--aq-schemes=all"])
def test_a_measuring_option_in_a_run_without_cases_is_refused(run, tmp_path, option, xdist):
    (tmp_path / "blessed").mkdir()
    extra = ["--aq-baseline-missing=write"] if "baseline" in option else []
    done = run({"test_mine.py": "def test_it(): pass\n"}, xdist, option, *extra)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{option.split('=')[0]}: no case was selected" in done.stdout + done.stderr
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("name", "conftest"),
    [("-p", ""), ("pytest_plugins", "pytest_plugins = ['pytest_autoquant.plugin']\n")],
)
def test_the_plugin_may_be_named_although_it_is_installed(run, name, conftest):
    arguments = ["-p", "pytest_autoquant.plugin"] if name == "-p" else []
    done = run({"test_mine.py": "def test_it(): pass\n", "conftest.py": conftest}, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


TYPED = """
[tool.pytest]
aq_device = "cpu"
aq_sizes = ["small"]
aq_pairs = ["wint8_afp16", "wint4_afp16"]
aq_granularities = ["default"]
aq_batch_size = 4
aq_effective_bits = 6.5
aq_export = false
aq_structure_only = true
"""
SHOW = """
from pytest_autoquant.plugin.pytest_config import plan_of

def test_show(aq_combination, request):
    settings = plan_of(request.config).settings
    print("SHOWN", settings.batch_size, settings.effective_bits, settings.structure_only)
"""


@pytest.mark.parametrize(
    ("arguments", "shown", "counts"),
    [((), None, "2 deselected"), (("--aq-no-structure-only",), "SHOWN 4 6.5 False", "2 passed")],
    ids=["ini", "switched off"],
)
def test_native_toml_values_are_typed_and_a_flag_can_be_switched_off(run, arguments, shown, counts):
    files = {"pyproject.toml": TYPED, "test_mine.py": SHOW}
    done = run(files, "-s", *arguments)
    assert done.stderr == ""
    assert counts in done.stdout
    assert (shown or "") in done.stdout


def test_a_toml_value_of_another_type_is_refused_by_name(run):
    text = '[tool.pytest]\naq_batch_size = "four"\n'
    done = run({"pyproject.toml": text, "test_mine.py": SHOW})
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ini option aq_batch_size" in done.stderr
    assert "whole number of at least 1" in done.stderr


def test_a_path_after_a_space_that_moves_the_root_directory_is_refused(run, tmp_path):
    other = tmp_path.parent / f"{tmp_path.name}-other"
    (other / "conf" / "quant_pair").mkdir(parents=True)
    (other / "pytest.ini").write_text("[pytest]\n")
    conf = f"../{other.name}/conf"
    files = {"test_mine.py": SHOW}
    done = run(files, "--aq-conf", conf, "test_mine.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"set its root directory to {other}; write --aq-conf={conf}" in done.stderr
    assert run(files, f"--aq-conf={conf}", *SMALL, "test_mine.py").returncode == 0


def test_cases_that_are_all_skipped_by_a_marker_are_not_lost(run, tmp_path):
    text = "import pytest\n@pytest.mark.skip(reason='not today')\ndef test_it(aq_case): pass\n"
    done = run({"test_mine.py": text}, *SMALL)
    assert done.returncode == 0
    summary = json.loads((tmp_path / "reports" / "tmp" / "summary.json").read_text())
    assert summary["lost"] == []
    (skip,) = summary["skipped"]
    assert (skip["status"], skip["reason"]) == ("skipped", "not today")


OWN_TEST = f"""
def test_int8_is_nearly_free(aq_measure):
    manifest = aq_measure("{CASE}")
    assert manifest.case.problems == ()
    assert manifest.autoquant_state.total_score < 0.001
"""


@BOTH
def test_a_test_asks_for_a_case_by_name(run, tmp_path, xdist):
    done = run({"test_mine.py": OWN_TEST}, xdist)
    assert "1 passed" in done.stdout
    (manifest,) = tmp_path.rglob("*_quant_manifest.json")
    assert "wint8_afp16" in manifest.name
    summary = json.loads((tmp_path / "reports" / "tmp" / "summary.json").read_text())
    assert summary["counts"]["measured"] == 1


def test_an_unknown_name_of_a_case_fails_with_what_is_known(run):
    text = "def test_it(aq_measure): aq_measure('wint9_afp16-default-small')\n"
    done = run({"test_mine.py": text})
    assert done.returncode == 1
    assert "'wint9_afp16' is unknown" in done.stdout
    assert "Traceback" not in done.stdout


TWO_TESTS = """
import pytest

def test_first(aq_case, aq_measure):
    aq_measure(aq_case)
    pytest.fail("on purpose")

def test_second(aq_case, aq_measure):
    aq_measure(aq_case)
"""


@pytest.mark.slow
@BOTH
def test_a_failed_test_of_a_case_is_not_hidden_by_another_one_that_passed(run, tmp_path, xdist):
    done = run(
        {"test_mine.py": TWO_TESTS}, *SMALL, xdist, "--aq-baseline=b", "--aq-update-baseline"
    )
    assert "1 failed, 1 passed" in done.stdout
    summary = json.loads((tmp_path / "reports" / "tmp" / "summary.json").read_text())
    assert [error["problem"] for error in summary["errors"]] == ["Failed: on purpose"]
    assert list(tmp_path.joinpath("b").rglob("*.json")) == []


SUBTESTS = """
import pytest

def test_subtests(aq_case, aq_measure, subtests):
    aq_measure(aq_case)
    with subtests.test("passes"):
        pass
    assert False

@pytest.mark.xfail
def test_expected(aq_case, aq_measure):
    aq_measure(aq_case)
    assert False
"""


@pytest.mark.slow
def test_subtests_and_expected_failures_bless_nothing(run, tmp_path):
    done = run({"test_mine.py": SUBTESTS}, *SMALL, "--aq-baseline=b", "--aq-update-baseline")
    assert "1 failed" in done.stdout
    assert "1 xfailed" in done.stdout
    assert list(tmp_path.joinpath("b").rglob("*.json")) == []


@pytest.mark.slow
def test_an_empty_selection_of_a_shard_is_not_green(run):
    files = {"test_mine.py": "def test_it(aq_case, aq_measure): aq_measure(aq_case)\n"}
    done = run(files, *SMALL, "--aq-shard=1/2", "-k", "nothing_like_it")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    done = run(files, *SMALL, "--aq-shard=2/2", "--aq-baseline=b", "--aq-baseline-missing=write")
    assert done.returncode == 0


def test_results_stay_where_the_command_line_says_although_a_test_changes_the_folder(run, tmp_path):
    text = OWN_TEST.replace("(aq_measure)", "(aq_measure, tmp_path, monkeypatch)").replace(
        "    manifest =", "    monkeypatch.chdir(tmp_path)\n    manifest ="
    )
    done = run({"test_mine.py": text}, "--aq-device=cpu", "--aq-report-dir=out")
    assert done.returncode == 0
    (manifest,) = tmp_path.rglob("*_quant_manifest.json")
    assert manifest.is_relative_to(tmp_path / "out")


SCHEDULER = """
from xdist.scheduler import LoadScheduling

def pytest_xdist_make_scheduler(config, log):
    print("MINE")
    return LoadScheduling(config, log)
"""


def test_a_projects_own_xdist_scheduler_stays(run):
    files = {"conftest.py": SCHEDULER, "test_mine.py": "def test_it(): pass\n"}
    assert "MINE" in run(files, "-n1", "-s").stdout


RERUN = """
def test_it(aq_case, aq_measure):
    assert aq_measure(aq_case) is None
"""


@pytest.mark.slow
def test_a_case_that_fails_every_attempt_is_not_blessed(run, tmp_path):
    options = ("--reruns=1", "--aq-baseline=b", "--aq-update-baseline")
    done = run({"test_mine.py": RERUN}, *SMALL, *options)
    assert "1 failed, 1 rerun" in done.stdout
    assert list(tmp_path.joinpath("b").rglob("*.json")) == []


KILLED = """
import os, signal
import pytest

@pytest.mark.parametrize("y", ["a", "b"])
def test_it(aq_case, y, aq_measure):
    if y == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    aq_measure(aq_case)
"""


@pytest.mark.slow
def test_a_case_with_one_more_parameter_is_named_when_its_worker_dies(run, tmp_path):
    done = run({"test_mine.py": KILLED}, *SMALL, "-n1", "--max-worker-restart=0")
    assert done.returncode == 1
    summary = json.loads((tmp_path / "reports" / "tmp" / "summary.json").read_text())
    assert summary["lost"] == ["tiny-qwen3-vl/wint8_afp16/default/small/gradient"]
    assert "run the same command with --aq-resume" in done.stdout


@pytest.mark.slow
def test_a_case_whose_own_assertion_failed_is_run_again_by_a_resumed_run(run):
    files = {"test_mine.py": RERUN}
    assert run(files, *SMALL).returncode == 1
    done = run(files, *SMALL, "--aq-resume")
    assert done.returncode == 1
    assert "1 failed" in done.stdout


@pytest.mark.slow
def test_a_corrupt_manifest_is_named_by_a_resumed_run(run, tmp_path):
    files = {"test_mine.py": "def test_it(aq_case, aq_measure): aq_measure(aq_case)\n"}
    assert run(files, *SMALL).returncode == 0
    (manifest,) = tmp_path.rglob("*_quant_manifest.json")
    manifest.write_text("{")
    done = run(files, *SMALL, "--aq-resume")
    assert "1 passed" in done.stdout
    assert f"{manifest.name}" in done.stdout
    assert "its case is measured again" in done.stdout


def test_an_unwritable_tape_folder_is_refused_before_the_model_is_loaded(run, tmp_path):
    (tmp_path / "tapes").write_text("not a folder")
    files = {"test_mine.py": "def test_it(aq_case, aq_measure): aq_measure(aq_case)\n"}
    done = run(files, *SMALL, "--aq-tape-dir=tapes")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--aq-tape-dir" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_gate_of_skipped_cases_alone_fails(run):
    text = "import pytest\n@pytest.mark.skip\ndef test_it(aq_case): pass\n"
    done = run({"test_mine.py": text}, *SMALL, "--aq-baseline=b", "--aq-baseline-missing=write")
    assert done.returncode == 1
    assert "no case was compared with a baseline" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--lf"], ["--sw"], ["-x"], ["--maxfail=1", "-n2"]])
def test_pytests_own_selection_and_stopping_work_with_cases(run, arguments):
    text = "def test_it(aq_combination, aq_check): aq_check(aq_combination)\n"
    done = run({"test_mine.py": text}, *SMALL, *arguments)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True)
    assert "INTERNALERROR" not in done.stdout + done.stderr
