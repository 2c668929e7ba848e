"""The programs that build ModelOpt's CUDA extensions. A CPU needs none of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from pytest_autoquant.cli.doctor.check import Check
from pytest_autoquant.text import in_words

_PURPOSE = "needed to build ModelOpt's CUDA extensions; not needed on a CPU"

#: Seconds for ``PROGRAM --version``: a compiler on a network drive may start slowly.
_PATIENCE = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    """A program.

    Attributes:
        folders: searched after PATH.
        remedy: how to get it.
    """

    name: str
    program: str
    folders: tuple[str, ...] = ()
    remedy: str


def check_compilers() -> tuple[Check, ...]:
    """Check the C++ compiler, nvcc and ninja."""
    return tuple(_check(tool) for tool in _tools())


def _tools() -> tuple[_Tool, ...]:
    # torch.utils.cpp_extension finds nvcc in these folders; PATH often lacks them.
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    return (
        _Tool(
            name="c++",
            program=os.environ.get("CXX") or "c++",
            remedy="install a C++ compiler and put it on PATH, or name it in CXX",
        ),
        _Tool(
            name="nvcc",
            program="nvcc",
            folders=tuple(f"{home}/bin" for home in homes if home),
            remedy="install the CUDA toolkit of torch's CUDA version and set CUDA_HOME",
        ),
        _Tool(
            name="ninja",
            program="ninja",
            remedy="python -m pip install ninja, in an activated environment",
        ),
    )


def _check(tool: _Tool) -> Check:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *tool.folders))
    program = shutil.which(tool.program, path=path)
    if program is None:
        return _unusable(tool, "not found")
    try:
        done = subprocess.run(  # noqa: S603 - a compiler that torch would run too
            [program, "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return _unusable(tool, f"does not run: {in_words(error)}")
    version = re.search(r"\d+(\.\d+)+", done.stdout)
    return Check(name=tool.name, status="ok", found=version.group() if version else "found")


def _unusable(tool: _Tool, found: str) -> Check:
    return Check(name=tool.name, status="warning", found=found, advice=f"{_PURPOSE}: {tool.remedy}")
