"""Cases beside other pytest plugins, installed for these tests alone, and in odd surroundings."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PLUGINS = ("pytest-randomly", "pytest-repeat", "pytest-cov", "coverage")
CHECKED = """
def test_structure(aq_combination, aq_check):
    assert aq_check(aq_combination).status == "supported"
"""
SELECTED = (
    "--aq-device=cpu",
    "--aq-pairs=wint8_afp16,wfp8_afp16",
    "--aq-granularities=default,w_per_tensor",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with plugins that would change this project's own runs if they were installed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    subprocess.run([*command, *PLUGINS], check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture
def run(tmp_path, site):
    """Run pytest on the structure test in ``tmp_path`` with the plugins at hand."""
    (tmp_path / "test_mine.py").write_text(CHECKED)

    def run_in(*arguments, cwd=tmp_path, **environment):
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *SELECTED, *arguments],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run_in


def counts_of(root):
    return json.loads((root / "reports" / "tmp" / "summary.json").read_text())["counts"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "randomly"),
        ("-p", "randomly", "-n2"),
        ("--count=2",),
        ("--cov=test_mine",),
        ("--cov=test_mine", "-n2"),
        ("--timeout=120", "--timeout-method=signal"),
        ("--timeout=120", "--timeout-method=thread"),
        ("-p", "no:xdist"),
        ("-p", "no:terminal"),
        ("-W", "error", "-n1"),
        ("--strict-config", "--strict-markers"),
    ],
    ids=" ".join,
)
def test_structure_cases_run_beside_other_plugins(run, tmp_path, arguments):
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert (counts_of(tmp_path)["structure"], counts_of(tmp_path)["lost"]) == (4, 0)


def test_random_order_measures_the_same_scores(run, tmp_path):
    measured = "def test_it(aq_case, aq_measure): aq_measure(aq_case)\n"
    (tmp_path / "test_mine.py").write_text(measured)
    scores = []
    for seed in ("1", "2"):
        assert run("--aq-sizes=small", "-p", "randomly", f"--randomly-seed={seed}").returncode == 0
        paths = sorted(tmp_path.rglob("*_quant_manifest.json"))
        scores.append([json.loads(path.read_text())["sensitivity_ranking"] for path in paths])
    assert len(scores[0]) == 4
    assert scores[0] == scores[1]


def test_an_ascii_locale_and_another_working_directory(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = run("../test_mine.py", cwd=elsewhere, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert counts_of(tmp_path)["structure"] == 4


def test_a_report_folder_that_cannot_be_made_is_one_sentence(run, tmp_path):
    (tmp_path / "reports").write_text("not a folder")
    done = run()
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "report folder" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
