"""Folders of installed packages, linked from the running environment: no download, no copy."""

import importlib.metadata
import sysconfig
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
