"""GPUs, ModelOpt's extensions and its quantizers, examined by running them.

Importing this module imports no torch; running a check does.
"""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from pytest_autoquant.cli.doctor.check import Check
from pytest_autoquant.text import in_words, one_line

#: Longest text of a torch warning in the table, in characters.
_MOST_WORDS = 300


def check_measuring(announce: Callable[[str], None]) -> Iterator[Check]:
    """Yield checks in the order in which measuring needs them.

    Args:
        announce: called with a line of text before anything slow.

    Raises whatever importing or running torch and ModelOpt raises.
    """
    yield from check_gpus()
    yield from check_extensions(announce)
    yield check_nvfp4_kernel()
    yield from check_quantizers(announce)


def check_gpus() -> tuple[Check, ...]:
    """Name every GPU that torch sees, with its memory and compute capability."""
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
    # torch reports a driver that does not fit as a warning.
    details = "".join(f"; {one_line(each.message, _MOST_WORDS)}" for each in warned)
    return (
        Check(
            name="GPU",
            status="warning",
            found=f"torch {torch.__version__} {reason}{details}",
            advice="cases run on the CPU, and those that need CUDA are skipped; to run them, use "
            "an NVIDIA GPU with its driver and a torch that is built with CUDA",
        ),
    )


def check_extensions(announce: Callable[[str], None]) -> tuple[Check, ...]:
    """Load each of ModelOpt's CUDA extensions, which builds those that were never built."""
    from pytest_autoquant.modelopt_support.private_api import cuda_extension_loaders

    loaders = cuda_extension_loaders()
    return tuple(_extension(name, load, announce) for name, load in loaders.items())


def check_nvfp4_kernel() -> Check:
    """Check whether ModelOpt provides its Triton kernel for NVFP4 here."""
    from pytest_autoquant.modelopt_support.private_api import has_nvfp4_kernel

    version = _triton_version()
    found = f"triton {version}" if version else "triton is not installed"
    if has_nvfp4_kernel():
        return Check(name="NVFP4 in Triton", status="ok", found=found)
    reason, advice = _why_no_kernel(version)
    return Check(name="NVFP4 in Triton", status="warning", found=found + reason, advice=advice)


def check_quantizers(announce: Callable[[str], None]) -> tuple[Check, ...]:
    """Run each pair that quantizes only weights or only activations on a small linear layer.

    If no pair runs, all are ``missing``: AutoQuant cannot run here.
    """
    from pytest_autoquant.formats.granularity import Granularity
    from pytest_autoquant.formats.quant_pair import builtin_pairs
    from pytest_autoquant.modelopt_support.probe import Prober
    from pytest_autoquant.models.device import resolve_device, resolve_dtype

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


def _gpu(index: int, properties: Any) -> Check:
    return Check(
        name=f"GPU {index}",
        status="ok",
        found=f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
        f"compute capability {properties.major}.{properties.minor}",
    )


def _extension(
    name: str, load: Callable[..., ModuleType | None], announce: Callable[[str], None]
) -> Check:
    """Load one extension with ``raise_if_failed``, as the quantizers that need it do."""
    import torch

    from pytest_autoquant.modelopt_support.quiet import quiet

    advice = ""
    if torch.cuda.is_available():
        announce(f"loading ModelOpt's {name}; its first build takes about a minute")
        advice = f"install c++, ninja and nvcc {torch.version.cuda}, then run the doctor again"
    started = time.perf_counter()
    try:
        with quiet():
            load(raise_if_failed=True)
    except Exception as error:  # the compiler, the linker or the loader failed
        return Check(name=name, status="warning", found=in_words(error), advice=advice)
    return Check(name=name, status="ok", found=f"loaded in {time.perf_counter() - started:.1f} s")


def _why_no_kernel(triton: str | None) -> tuple[str, str]:
    """Return why ModelOpt has no NVFP4 kernel, and what to do about it."""
    import torch

    if not torch.cuda.is_available():
        return "; ModelOpt uses it on CUDA only", ""
    if triton is None:
        return "", "python -m pip install triton"
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"; ModelOpt has no kernel for compute capability {capability}", ""


def _triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
