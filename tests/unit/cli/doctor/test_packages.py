"""Installed versions against the declared ranges."""

import importlib.metadata
import platform

import pytest
from packaging.requirements import Requirement
from pytest_autoquant.cli.doctor.check import Check
from pytest_autoquant.cli.doctor.packages import check_packages, check_requirements


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Add the metadata of a distribution to ``sys.path``."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(name, version):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )

    return add


def test_base_and_measure_requirements_are_checked_and_dev_ones_are_not(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.12.7")
    checks = {check.name: check for check in check_packages()}
    assert list(checks)[:4] == ["python", "pytest-autoquant", "pytest", "pytest-xdist"]
    assert {"torch", "transformers", "nvidia-modelopt"} <= checks.keys()
    assert not {"ruff", "mypy", "pytest-benchmark", "scipy"} & checks.keys()
    assert checks["python"].found == "3.12.7, within <3.14,>=3.11"
    required = map(Requirement, importlib.metadata.requires("pytest-autoquant"))
    declared = next(str(r.specifier) for r in required if r.name == "pytest")
    assert checks["pytest"].found == f"{pytest.__version__}, within {declared}"
    assert {check.status for check in checks.values()} == {"ok"}


def test_python_outside_the_range_is_missing(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.21")
    assert check_packages()[0] == Check(
        name="python",
        status="missing",
        found="3.9.21, outside <3.14,>=3.11",
        advice="use Python <3.14,>=3.11 and install pytest-autoquant there",
    )


def test_uninstalled_package_is_missing_with_its_install_command(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    python, own = check_packages()
    assert (python.name, python.status) == ("python", "ok")
    assert (own.name, own.status) == ("pytest-autoquant", "missing")
    assert own.advice == "python -m pip install 'pytest-autoquant[measure]'"


def test_one_command_installs_missing_and_out_of_range_packages(install):
    install("aq_old", "4.5")
    install("aq_right", "4.57.1")
    install("aq_nightly", "2.14.0.dev20260101+cu130")
    install("aq_any", "0.0.1")
    command = "python -m pip install 'aq-old<5,>=4.57' 'aq-absent==0.47.*' aq-unpinned"
    expected = {
        "aq-old>=4.57,<5": ("missing", "4.5, outside <5,>=4.57", command),
        "aq-right>=4.57,<5": ("ok", "4.57.1, within <5,>=4.57", ""),
        "aq-absent==0.47.*": ("missing", "not installed; supported: ==0.47.*", command),
        "aq-nightly>=2.8": ("ok", "2.14.0.dev20260101+cu130, within >=2.8", ""),
        "aq-any": ("ok", "0.0.1", ""),
        "aq-unpinned": ("missing", "not installed; supported: any version", command),
    }
    checks = check_requirements([Requirement(text) for text in expected])
    assert [(check.status, check.found, check.advice) for check in checks] == [*expected.values()]
