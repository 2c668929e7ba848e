"""Device and compute dtype of a measurement, and what its tensors take on a GPU."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping
from types import MappingProxyType

import torch

from pytest_autoquant.errors import UsageError

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
)

_DEVICE_NAME = re.compile(r"cpu|cuda(?::(\d{1,3}))?")


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` is CUDA if torch sees a CUDA device, else the CPU.

    Raises:
        UsageError: another name, or a CUDA device that torch does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = _DEVICE_NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    # Not torch.device(name).index: it has 8 bits, and 'cuda:999' becomes device -25.
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r} is not available: torch sees {torch.cuda.device_count()} CUDA "
            "devices; use --aq-device cpu or a machine with a GPU"
        )
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype; ``auto`` is bf16 on CUDA and fp32 on CPU.

    Raises:
        UsageError: neither ``auto`` nor a key of ``DTYPES``.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def reset_peak_cuda_bytes(device: torch.device) -> None:
    """Start a new peak for ``peak_cuda_bytes``; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_cuda_bytes(device: torch.device) -> int | None:
    """Return the largest number of bytes of tensors on a GPU since the reset, None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Wait for all work queued on a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_cuda_memory() -> None:
    """Return cached blocks to the GPU after it ran out of memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
