"""What a measurement ran on: versions, device, peak memory."""

from __future__ import annotations

import getpass
import platform
import socket
import sys

import torch

from pytest_autoquant.manifests.fingerprint import HARNESS_VERSION
from pytest_autoquant.manifests.records.sensitivity_manifest import EnvironmentRecord, MemoryRecord


def environment_record(device: torch.device, *, record_host: bool) -> EnvironmentRecord:
    """Return versions and device of this process; host and user only with ``record_host``."""
    import modelopt
    import transformers

    is_cuda = device.type == "cuda"
    return EnvironmentRecord(
        harness=HARNESS_VERSION,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        modelopt=modelopt.__version__,
        cuda=torch.version.cuda,
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if is_cuda else "CPU",
        platform=f"{platform.system()} {platform.machine()}",
        host=socket.gethostname() if record_host else None,
        user=getpass.getuser() if record_host else None,
    )


def memory_record(peak_cuda_bytes: int | None) -> MemoryRecord:
    """Return the peak resident memory of this process so far beside the peak on the GPU."""
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rss_bytes = peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
    return MemoryRecord(peak_rss_bytes=rss_bytes, peak_cuda_bytes=peak_cuda_bytes)
