"""Inner projects for the plugin's tests, and one real sweep that several of them read."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

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


def run_pytest(folder, *arguments):
    # One thread each: two workers with two threads each crawl on two cores.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Run(folder=folder, status=done.returncode, output=done.stdout + done.stderr)


def make_project(folder):
    """Give ``folder`` the two case files and an ini file that makes it a rootdir."""
    shutil.copytree(CASES, folder / "cases", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    return folder


@pytest.fixture
def project(pytester):
    """A pytester whose folder is a project with the cases in it."""
    make_project(pytester.path)
    return pytester


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
def modelopt():
    """Everything a measurement imports, imported by a measurement.

    pytester forgets modules that an in-process run is the first to import, and neither torch nor
    ModelOpt's patches of transformers survive being imported twice.
    """
    import torch

    from harness.session import AutoquantSession
    from harness.settings import read_settings

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = {"pairs": "wint8_afp16", "granularities": "default", "sizes": "small", "device": "cpu"}
    settings = read_settings(lambda option: (given.get(option.name), option.flag))
    session = AutoquantSession(settings, Path())
    bench = session.bench(lambda *_: None, print)
    session.structure(session.combinations[0], bench)
    session.measure(session.cases[0], bench)
    yield
    torch.set_num_threads(threads)
