"""Inner projects for the plugin's tests, and one real sweep that several of them read."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

# Once per process as well: a second import would make second classes.
import vl_convert  # noqa: F401 - once per process, and pytester forgets what its runs import
from builders import import_everything, one_thread

CASES = Path(__file__).resolve().parents[2] / "cases"


@dataclass(frozen=True)
class Run:
    """A finished pytest run of its own process."""

    folder: Path
    status: int
    output: str

    @property
    def root(self):
        return self.folder / "reports" / "tmp"


def run_pytest(folder, *arguments, addopts=()):
    """Run pytest; what ``addopts`` adds is not part of the command line that reports name."""
    # One thread each: two workers with two threads each crawl on two cores.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": " ".join(addopts)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Run(folder=folder, status=done.returncode, output=done.stdout + done.stderr)


@dataclass(frozen=True)
class Project:
    """A folder with the cases in it, for several runs that one test or a module shares."""

    folder: Path

    def run(self, *arguments, addopts=()):
        """Run pytest to its end."""
        return run_pytest(self.folder, *arguments, addopts=addopts)

    def start(self, *arguments):
        """Start pytest in a session of its own; its output goes to ``output.txt``."""
        with (self.folder / "output.txt").open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_ctrl_c,
            )

    def finished(self, process):
        """Wait for what ``start`` returned."""
        try:
            status = process.wait(timeout=120)
        finally:
            process.kill()
        output = (self.folder / "output.txt").read_text()
        return Run(folder=self.folder, status=status, output=output)

    def harness(self, *arguments):
        """Run ``aq-harness``."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest_autoquant.cli", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Run(folder=self.folder, status=done.returncode, output=done.stdout + done.stderr)


def _heed_ctrl_c():
    """A CI job may itself run in the background, where shells have children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def make_project(folder):
    """Give ``folder`` the case files and an ini file that makes it a rootdir.

    Scores are not checked and whole models not measured: KL divergences round otherwise
    when other cases are measured together. What tests make of ModelOpt is not remembered.
    """
    shutil.copytree(CASES, folder / "cases", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers -p no:hypothesispytest\naq_check_scores = false\n"
        "aq_whole_model_kl = false\naq_cache = false\n"
    )
    return folder


@pytest.fixture
def project(pytester):
    """A pytester whose folder is a project with the cases in it."""
    make_project(pytester.path)
    return pytester


@pytest.fixture(scope="session")
def new_project(tmp_path_factory):
    """Make a project by name, for runs in processes of their own."""
    return lambda name: Project(make_project(tmp_path_factory.mktemp(name)))


@pytest.fixture
def spawn(tmp_path):
    """Run pytest in a process of its own, in a project at ``tmp_path``."""
    return partial(run_pytest, make_project(tmp_path))


@pytest.fixture(scope="session")
def sweep_arguments():
    """Twelve combinations of the embedded model."""
    return (
        *("cases", "-rs", "--aq-device=cpu", "--aq-sizes=small"),
        "--aq-pairs=wfp4_afp8,wint8_afp16,wint4_aint8",
        "--aq-granularities=default,w_per_out_channel,w_group128,a_per_token_dynamic",
    )


@pytest.fixture(scope="session")
def sweep(tmp_path_factory, sweep_arguments):
    """A real sweep in a process of its own."""
    return run_pytest(make_project(tmp_path_factory.mktemp("sweep")), "-n0", *sweep_arguments)


@pytest.fixture(scope="session")
def grid_arguments():
    """Two sizes that take equally long, aliases within and across pairs' overlays, skips."""
    return (
        *("cases", "--aq-device=cpu", "--aq-sizes=small,medium", "--aq-score-size=16"),
        "--aq-pairs=wfp4_afp8,wint8_afp16,wint4_aint8",
        "--aq-granularities=default,w_per_out_channel,w_group128",
    )


@pytest.fixture(scope="session")
def grid(new_project, grid_arguments):
    """A real run over the grid in one process: what other ways to run it must equal."""
    return new_project("grid").run(*grid_arguments, addopts=("-n0",))


#: When something was measured and how long it took, in reports, and the padding of table cells that
#: depends on it.
TIMES = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d( UTC|\+00:00)|took (\d+ min )?[\d.]+ s"
    r'|"seconds": ?[\d.e-]+|-{3,}:?| {2,}'
)

#: Where the time went: in ``summary.json``, ``summary.md`` and the page.
TIMING = re.compile(
    r'"timing": \[[^\]]*\]|## Where the time went.*?(?=\n<!--)|<h3 id="timing">.*?</table>',
    re.DOTALL,
)


@pytest.fixture(scope="session")
def contents():
    """Read every file below a report root, without what differs from run to run."""
    return read_contents


def read_contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): comparable(path) for path in files}


def comparable(path):
    if not path.name.endswith("_quant_manifest.json"):
        return TIMES.sub("TIME", TIMING.sub("TIMING", path.read_text()))
    manifest = json.loads(path.read_text())
    del manifest["timing"], manifest["memory"], manifest["measured_at"]
    return manifest


@pytest.fixture(scope="session")
def modelopt():
    """Everything that a run imports, imported by a measurement."""
    with one_thread():
        import_everything()
        yield
