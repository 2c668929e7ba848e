"""The wheel, built and installed into a new virtual environment, does what the README promises.

The environment's other packages are links to those of the running one: everything of this project
in it comes from the wheel.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from environments import link_base_install, link_everything_else

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "harness", "cases")
#: Leftovers of other builds and runs, which no clean checkout has.
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules")
ONE_CASE = "small and wint8_afp16 and default"
MANIFEST = (
    "reports/tmp/tiny-qwen3-vl/weight-int8-act-fp16/default/small/"
    "wint8_afp16_autoquant_lm_quant_manifest.json"
)


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel in it."""

    folder: Path

    @property
    def site(self):
        """Its site-packages."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        return site

    def run(self, program, *arguments, cwd):
        """Run one of its programs, without any of this process's own paths."""
        return subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd,
            env={**clean_environment(), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def clean_environment():
    """This process's environment without what would bring its packages and options along."""
    own = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_PLUGINS")
    return {name: value for name, value in os.environ.items() if name not in own}


def install(wheel, folder, link):
    """Install the wheel, without its dependencies, into a new environment that has links."""
    venv.create(folder, with_pip=False)
    installed = Installed(folder)
    link(installed.site)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    done = subprocess.run(
        [*pip, "--quiet", "--no-deps", "--no-index", str(wheel)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # pytest is a link, so nothing has written its script.
    script = folder / "bin" / "pytest"
    _, body = Path(sys.executable).with_name("pytest").read_text().split("\n", 1)
    script.write_text(f"#!{folder / 'bin' / 'python'}\n{body}")
    script.chmod(0o755)
    return installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist, which is built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=NOT_SOURCES)
        else:
            shutil.copy(source, folder / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def full(wheel, tmp_path_factory):
    """An environment like that of ``pip install "pytest-autoquant[measure]"``."""
    return install(wheel, tmp_path_factory.mktemp("full") / "venv", link_everything_else)


@pytest.fixture(scope="module")
def base(wheel, tmp_path_factory):
    """An environment like that of ``pip install pytest-autoquant``."""
    return install(wheel, tmp_path_factory.mktemp("base") / "venv", link_base_install)


def documented_test():
    """The test of one's own in docs/fixtures.md."""
    text = (ROOT / "docs" / "fixtures.md").read_text()
    (code,) = re.findall(r"```python\n# test_sensitivity.py\n(.*?)```", text, re.DOTALL)
    return code


def source_files():
    """Every file of the package, by its path in the wheel."""
    for top, target in (("harness", ""), ("cases", "pytest_autoquant/cases/")):
        for path in (ROOT / top).rglob("*"):
            relative = path.relative_to(ROOT / top)
            is_leftover = {"__pycache__", "node_modules"} & {*relative.parts} or any(
                part.endswith(".egg-info") for part in relative.parts
            )
            if path.is_file() and not is_leftover:
                yield f"{target}{relative.as_posix()}"


def test_wheel_holds_every_source_file_and_one_top_level_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {*source_files()}
    assert {name.partition("/")[0] for name in packed} == {"pytest_autoquant"}


def test_documented_command_measures_in_an_empty_folder(full, tmp_path):
    done = full.run(
        "pytest", "--pyargs", "pytest_autoquant.cases", "-k", ONE_CASE, "-q", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, " in done.stdout
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["case"]["status"] == "measured"
    assert len(manifest["sensitivity_ranking"]) == 24


@pytest.mark.parametrize(
    ("flag", "selected"),
    [("--structure-only", "test_structure"), ("--gpu-only", "test_sensitivity")],
)
def test_flags_of_the_cases_work_with_pyargs(flag, selected, full, tmp_path):
    arguments = ("--collect-only", "-q", flag, "--aq-device=cpu", "-k", "wint8_afp16 and default")
    done = full.run("pytest", "--pyargs", "pytest_autoquant.cases", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert {name.partition("::")[2] for name in collected} == {selected}


def test_documented_test_of_ones_own_passes(full, tmp_path):
    (tmp_path / "test_sensitivity.py").write_text(documented_test())
    done = full.run("pytest", "-q", "test_sensitivity.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("program", [("pytest",), ("python", "-m", "pytest")], ids=" ".join)
def test_project_with_a_package_called_harness_keeps_it(full, tmp_path, program):
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("OWNER = 'the project'\n")
    (tmp_path / "conftest.py").write_text("import harness\n")
    (tmp_path / "test_own.py").write_text(
        "import harness\n\n\ndef test_own():\n    assert harness.OWNER == 'the project'\n"
    )
    done = full.run(*program, "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert not (tmp_path / "reports").exists()


def test_base_install_reads_reports_and_names_the_extra_when_it_measures(base, full, tmp_path):
    full.run("pytest", "--pyargs", "pytest_autoquant.cases", "-k", ONE_CASE, cwd=tmp_path)
    rendered = base.run("aq-harness", "render", "reports/tmp", cwd=tmp_path)
    assert (rendered.returncode, rendered.stderr) == (0, "")
    assert rendered.stdout.startswith("reports/tmp: 1 measured, ")
    measured = base.run(
        "pytest", "--pyargs", "pytest_autoquant.cases", "-k", ONE_CASE, cwd=tmp_path
    )
    assert measured.returncode != 0
    assert "pip install 'pytest-autoquant[measure]'" in measured.stdout + measured.stderr
    assert "Traceback" not in measured.stdout + measured.stderr
