"""Versions of Python and of every package, against the ranges that this package declares."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from collections.abc import Iterable, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pytest_autoquant.cli.doctor.check import Check

_DISTRIBUTION = "pytest-autoquant"


def check_packages() -> tuple[Check, ...]:
    """Check Python, this package, its dependencies and those of ``[measure]``."""
    python = platform.python_version()
    try:
        own = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return (
            Check(name="python", status="ok", found=python),
            Check(
                name=_DISTRIBUTION,
                status="missing",
                found="not installed, so the supported versions are unknown",
                advice=f"python -m pip install '{_DISTRIBUTION}[measure]'",
            ),
        )
    return (
        _python(python, SpecifierSet(own.metadata["Requires-Python"])),
        Check(name=_DISTRIBUTION, status="ok", found=own.version),
        *check_requirements(_for_measuring(own.requires or ())),
    )


def check_requirements(requirements: Sequence[Requirement]) -> tuple[Check, ...]:
    """Check installed versions against ranges; one command installs everything that is wrong."""
    installed = {each.name: _installed(each.name) for each in requirements}
    wrong = [each for each in requirements if not _fits(each.specifier, installed[each.name])]
    command = "python -m pip install " + " ".join(
        shlex.quote(f"{each.name}{each.specifier}") for each in wrong
    )
    return tuple(
        Check(
            name=each.name,
            status="missing" if each in wrong else "ok",
            found=_compared(each.specifier, installed[each.name]),
            advice=command if each in wrong else "",
        )
        for each in requirements
    )


def _for_measuring(declared: Iterable[str]) -> tuple[Requirement, ...]:
    """Return the plain requirements and those of ``[measure]``, without ``[dev]``."""
    parsed = (Requirement(text) for text in declared)
    return tuple(
        each for each in parsed if each.marker is None or each.marker.evaluate({"extra": "measure"})
    )


def _python(version: str, supported: SpecifierSet) -> Check:
    fits = _fits(supported, version)
    return Check(
        name="python",
        status="ok" if fits else "missing",
        found=_compared(supported, version),
        advice="" if fits else f"use Python {supported} and install {_DISTRIBUTION} there",
    )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(supported: SpecifierSet, version: str | None) -> bool:
    # A nightly torch is a prerelease, and is allowed.
    return version is not None and supported.contains(version, prereleases=True)


def _compared(supported: SpecifierSet, version: str | None) -> str:
    if version is None:
        return f"not installed; supported: {supported or 'any version'}"
    where = "within" if _fits(supported, version) else "outside"
    return f"{version}, {where} {supported}" if supported else version
