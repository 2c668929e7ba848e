"""The command line in processes of their own, also where only the base install is."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_autoquant
from environments import link_base_install

HEAVY = ("torch", "transformers", "modelopt")
#: Runs a command, then prints which heavy modules it imported.
RUN = f"""
import sys
from pytest_autoquant.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
print("imported", sorted({{*{HEAVY}}} & set(sys.modules)), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def aq_harness():
    """Run ``aq-harness`` in a process of its own; the last line of stderr names heavy imports."""

    def run(*arguments, environment=(), **settings):
        return subprocess.run(
            [sys.executable, "-c", RUN, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)},
            check=False,
            text=True,
            timeout=120,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings},
        )

    return run


@pytest.fixture(scope="session")
def base_site(tmp_path_factory):
    """The site-packages of ``pip install pytest-autoquant``: no torch, no ModelOpt."""
    site = tmp_path_factory.mktemp("base") / "site"
    site.mkdir()
    (site / "pytest_autoquant").symlink_to(Path(pytest_autoquant.__file__).parent)
    own = site / f"pytest_autoquant-{pytest_autoquant.__version__}.dist-info"
    own.mkdir()
    installed = importlib.metadata.distribution("pytest-autoquant")
    # A checkout may hold an egg-info, whose metadata has another name.
    metadata = installed.read_text("METADATA") or installed.read_text("PKG-INFO")
    (own / "METADATA").write_text(metadata)
    link_base_install(site)
    return site


@pytest.fixture
def base_install(base_site, tmp_path):
    """Run ``aq-harness`` where only the base install is."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-S", "-P", "-m", "pytest_autoquant.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(base_site)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
