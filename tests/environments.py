"""Environments with the installed packages: linked or seen from the running one, not copied."""

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from packaging.requirements import Requirement

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


def link_everything_else(site):
    """Link every installed package but pytest-autoquant into ``site``."""
    for path in SITE_PACKAGES.iterdir():
        if "autoquant" not in path.name and path.name != "__pycache__":
            (site / path.name).symlink_to(path)


def link_base_install(site):
    """Link what ``pip install pytest-autoquant`` without an extra brings into ``site``."""
    for name in sorted(_closure("pytest-autoquant") - {"pytest-autoquant"}):
        distribution = importlib.metadata.distribution(name)
        parts = {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}
        for part in parts:
            if not (site / part).exists():
                (site / part).symlink_to(distribution.locate_file(part))


def _closure(name):
    """Return a distribution and everything that it requires, directly or not."""
    names, waiting = set(), [name]
    while waiting:
        current = waiting.pop().lower().replace("_", "-")
        if current not in names:
            names.add(current)
            for text in importlib.metadata.requires(current) or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    waiting.append(requirement.name)
    return names


def create_beside(folder):
    """Create a virtual environment that sees the installed packages; return its Python.

    A path file shows them, no links: pip counts them as installed and never writes to them.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "running.pth").write_text(f"{SITE_PACKAGES}\n")
    return folder / "bin" / "python"


def install_into(python, *arguments):
    """Install packages into an environment; return what pip said if it could not, else nothing."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
    return done.stderr.strip()[-300:] if done.returncode else ""
