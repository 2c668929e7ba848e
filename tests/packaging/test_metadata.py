"""pyproject.toml, constraints.txt, run.py and the page of versions agree with each other."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts]
    for name, texts in PROJECT["optional-dependencies"].items()
}
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def pin(requirement):
    normalized = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    return normalized[requirement.name.lower()]


def every_requirement():
    everything = [*BASE, *EXTRAS["measure"], *EXTRAS["dev"]]
    return [each for each in everything if each.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", every_requirement(), ids=lambda each: each.name)
def test_pinned_version_is_within_the_declared_range(requirement):
    assert requirement.specifier.contains(pin(requirement))


def test_base_install_has_no_torch_and_no_development_tool():
    names = {each.name for each in BASE}
    assert names.isdisjoint({"torch", "transformers", "nvidia-modelopt", "pytest-benchmark"})
    assert {"torch", "transformers", "nvidia-modelopt"} <= {each.name for each in EXTRAS["measure"]}
    assert str(EXTRAS["dev"][0]) == "pytest-autoquant[measure]"


def test_supported_python_is_the_same_everywhere():
    supported = SpecifierSet(PROJECT["requires-python"])
    minors = [minor for minor in range(8, 20) if f"3.{minor}" in supported]
    classified = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))
    assert [int(minor) for minor in classified] == minors
    script = runpy.run_path(str(ROOT / "run.py"))
    assert (script["OLDEST_PYTHON"], script["NEWEST_PYTHON"]) == ((3, minors[0]), (3, minors[-1]))


@pytest.mark.parametrize(
    "name", ["nvidia-modelopt", "torch", "transformers", "pytest", "pytest-xdist"]
)
def test_page_of_versions_names_the_tested_version(name):
    page = (ROOT / "docs" / "versions.md").read_text()
    (row,) = re.findall(rf"^\| {name} \|.*$", page, re.MULTILINE)
    assert PINS[name] in row
