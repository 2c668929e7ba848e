"""What this machine has of what AutoQuant needs, found out by looking and by trying.

Declared ranges come from the installed package, and what ModelOpt can do from running it. torch,
transformers and ModelOpt are imported one after the other; what a missing one hides is not shown.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tabulate import tabulate

from pytest_autoquant.text import in_words

CheckStatus = Literal["ok", "missing", "warning"]
Announce = Callable[[str], None]

PACKAGE = "pytest-autoquant"
FOUND_WIDTH = 76
MOST_WORDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at.

    Attributes:
        status: ``missing`` is needed and not there or out of range; ``warning`` limits what runs.
        advice: what to do about it, a command where one does it.
    """

    name: str
    status: CheckStatus
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    """A program that builds ModelOpt's extensions."""

    name: str
    program: str
    folders: tuple[str, ...]
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """Checks that need a module; those of later stages need the modules of earlier ones too."""

    module: str
    look: Callable[[Announce], Sequence[Check]]


def examine(announce: Announce) -> tuple[Check, ...]:
    """Check versions, compilers, GPUs and ModelOpt's extensions and quantizers.

    Args:
        announce: is told before anything that takes a while.
    """
    checks = [*versions(), *compilers()]
    for stage in _STAGES:
        refusal = _import_refusal(stage.module)
        if refusal is not None:
            checks.append(refusal)
            break
        checks += _looked_at(stage, announce)
    return tuple(checks)


def can_run(checks: Sequence[Check]) -> bool:
    """Whether nothing that AutoQuant needs is missing or out of range."""
    return all(check.status != "missing" for check in checks)


def render_checks(checks: Sequence[Check]) -> str:
    """Return a table of what was found, then each advice with what it is for, then the verdict."""
    table = tabulate(
        [(check.name, check.status, check.found) for check in checks],
        headers=("check", "status", "found"),
        tablefmt="simple",
        maxcolwidths=[None, None, FOUND_WIDTH],
        disable_numparse=True,
    )
    advice: dict[str, list[str]] = {}
    for check in checks:
        if check.advice:
            advice.setdefault(check.advice, []).append(check.name)
    # Not in the table: a command that a column wraps cannot be copied.
    lines = [f"{', '.join(names)}:\n    {what}" for what, names in advice.items()]
    verdict = (
        "AutoQuant can run here"
        if can_run(checks)
        else "AutoQuant cannot run here: see what is missing"
    )
    return "\n".join([table, "", *lines, *([""] if lines else []), verdict])


def versions() -> tuple[Check, ...]:
    """Check Python, this package and every package it declares, against the declared ranges."""
    version = platform.python_version()
    try:
        own = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return (
            Check(name="python", status="ok", found=version),
            Check(
                name=PACKAGE,
                status="missing",
                found="not installed: its declared ranges are unknown",
                advice="python -m pip install -e .   (in the project folder)",
            ),
        )
    ranges = SpecifierSet(own.metadata["Requires-Python"])
    return (
        _python(version, ranges),
        Check(name=PACKAGE, status="ok", found=own.version),
        *packages(tuple(_declared(own.requires or ()))),
    )


def packages(requirements: Sequence[Requirement]) -> tuple[Check, ...]:
    """Check what is installed against the ranges; one command gets all that is not right."""
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


def compilers() -> tuple[Check, ...]:
    """Check the programs that build ModelOpt's CUDA extensions; a CPU needs none of them."""
    return tuple(_tool(tool) for tool in _tools())


def gpus() -> tuple[Check, ...]:
    """Name every GPU that torch sees with its memory and compute capability."""
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if is_available:
        return tuple(
            _gpu(index, torch.cuda.get_device_properties(index))
            for index in range(torch.cuda.device_count())
        )
    reason = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
    # torch says what is wrong with a driver in a warning.
    said = "".join(f"; {_one_line(str(each.message))}" for each in warned)
    return (
        Check(
            name="GPU",
            status="warning",
            found=f"torch {torch.__version__} {reason}{said}",
            advice="the CPU is used; what needs CUDA is skipped. For it: an NVIDIA GPU with its "
            "driver, and a torch built with CUDA",
        ),
    )


def extensions(announce: Announce) -> tuple[Check, ...]:
    """Load, which builds where that was never done, each CUDA extension that ModelOpt has."""
    from pytest_autoquant.modelopt_support.private_api import cuda_extension_loaders

    loaders = cuda_extension_loaders()
    return tuple(_extension(load, name, announce) for name, load in loaders.items())


def triton_kernels() -> tuple[Check, ...]:
    """Check whether ModelOpt has its Triton kernel for NVFP4 here."""
    import torch

    from pytest_autoquant.modelopt_support.private_api import has_nvfp4_kernel

    version = _installed("triton")
    found = f"triton {version}" if version else "triton is not installed"
    if has_nvfp4_kernel():
        return (Check(name="NVFP4 in Triton", status="ok", found=found),)
    advice = ""
    if not torch.cuda.is_available():
        found += "; ModelOpt uses it on CUDA only"
    elif version is None:
        advice = "python -m pip install triton"
    else:
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        found += f"; ModelOpt has no kernel for compute capability {capability}"
    return (Check(name="NVFP4 in Triton", status="warning", found=found, advice=advice),)


def quantizers(announce: Announce) -> tuple[Check, ...]:
    """Run each pair that quantizes weights or activations alone on a small linear.

    When none of them runs, AutoQuant cannot run here at all.
    """
    from pytest_autoquant.formats.granularity import Granularity
    from pytest_autoquant.formats.quant_pair import builtin_pairs
    from pytest_autoquant.modelopt_support.probe import Prober
    from pytest_autoquant.models.loading import resolve_device, resolve_dtype

    device = resolve_device("auto")
    announce(f"running ModelOpt's quantizers on {device.type}")
    prober = Prober(device, resolve_dtype("auto", device))
    supports = {
        pair.name: prober.support(prober.resolve(pair, Granularity(name="default")))
        for pair in builtin_pairs().values()
        if "fp16" in (pair.weight, pair.activation)
    }
    is_usable = any(support.is_supported for support in supports.values())
    return tuple(
        Check(
            name=f"{name} on {device.type}",
            status="ok" if support.is_supported else "warning" if is_usable else "missing",
            found="runs" if support.is_supported else support.skip_reason,
        )
        for name, support in supports.items()
    )


_STAGES = (
    _Stage(module="torch", look=lambda announce: gpus()),
    _Stage(
        module="modelopt.torch.quantization",
        look=lambda announce: (*extensions(announce), *triton_kernels()),
    ),
    _Stage(module="transformers", look=quantizers),
)


def _import_refusal(module: str) -> Check | None:
    try:
        with warnings.catch_warnings():
            # ModelOpt warns of every plugin that it does without.
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything
        return Check(
            name=f"import {module}",
            status="missing",
            found=in_words(error),
            advice="until it can be imported, nothing that needs it can be looked at",
        )
    return None


def _looked_at(stage: _Stage, announce: Announce) -> Sequence[Check]:
    try:
        return stage.look(announce)
    except Exception as error:  # a driver that fails, a ModelOpt that has moved things
        return (Check(name=f"use {stage.module}", status="missing", found=in_words(error)),)


def _python(version: str, ranges: SpecifierSet) -> Check:
    fits = _fits(ranges, version)
    return Check(
        name="python",
        status="ok" if fits else "missing",
        found=_compared(ranges, version),
        advice="" if fits else f"use Python {ranges} and install {PACKAGE} there",
    )


def _declared(requirements: Sequence[str]) -> Iterator[Requirement]:
    """Yield what a plain installation needs, without the extras."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(ranges: SpecifierSet, version: str | None) -> bool:
    # A nightly torch is a prerelease, and fine.
    return version is not None and ranges.contains(version, prereleases=True)


def _compared(ranges: SpecifierSet, version: str | None) -> str:
    if version is None:
        return f"not installed; wanted {ranges or 'any version'}"
    where = "within" if _fits(ranges, version) else "outside"
    return f"{version}, {where} {ranges}" if ranges else version


def _tools() -> tuple[_Tool, ...]:
    # torch looks for nvcc in these places; some are often missing from PATH.
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    needed = "ModelOpt's CUDA extensions are built with it, a CPU needs none:"
    return (
        _Tool(
            name="c++",
            program=os.environ.get("CXX") or "c++",
            folders=(),
            advice=f"{needed} install a C++ compiler and put it on PATH, or name it in CXX",
        ),
        _Tool(
            name="nvcc",
            program="nvcc",
            folders=tuple(f"{home}/bin" for home in homes if home),
            advice=f"{needed} install the toolkit of torch's CUDA version and set CUDA_HOME",
        ),
        _Tool(
            name="ninja",
            program="ninja",
            folders=(),
            advice=f"{needed} python -m pip install ninja, in an activated environment",
        ),
    )


def _tool(tool: _Tool) -> Check:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *tool.folders))
    program = shutil.which(tool.program, path=path)
    if program is None:
        return Check(name=tool.name, status="warning", found="not found", advice=tool.advice)
    try:
        done = subprocess.run(  # noqa: S603 - a compiler that torch would run too
            [program, "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        found = f"does not run: {in_words(error)}"
        return Check(name=tool.name, status="warning", found=found, advice=tool.advice)
    version = re.search(r"\d+(\.\d+)+", done.stdout)
    return Check(name=tool.name, status="ok", found=version.group() if version else "found")


def _gpu(index: int, properties: Any) -> Check:
    return Check(
        name=f"GPU {index}",
        status="ok",
        found=f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
        f"compute capability {properties.major}.{properties.minor}",
    )


def _extension(load: Callable[..., ModuleType | None], name: str, announce: Announce) -> Check:
    """Load one extension as the quantizers do that cannot do without it."""
    import torch

    from pytest_autoquant.modelopt_support.quiet import quiet

    name = name.removeprefix("get_")
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        announce(f"loading ModelOpt's {name}; its first build takes about a minute")
    started = time.perf_counter()
    try:
        with quiet():
            load(raise_if_failed=True)
    except Exception as error:  # the compiler, the linker or the loader failed
        advice = f"needs c++, ninja and nvcc {torch.version.cuda}; then run this again"
        return Check(
            name=name,
            status="warning",
            found=in_words(error),
            advice=advice if has_cuda else "",
        )
    return Check(name=name, status="ok", found=f"loaded in {time.perf_counter() - started:.1f} s")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MOST_WORDS]
