"""Where the options of a run let the model's weights stay, and what can be refused early."""

from __future__ import annotations

from contextlib import suppress

from pytest_autoquant.errors import ModelError
from pytest_autoquant.models.architecture import empty_model
from pytest_autoquant.models.device import resolve_device, resolve_dtype
from pytest_autoquant.models.offload.device_map import Offload, check_limit, device_map
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.models.offload.spread import check_space, disk_bytes
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.options.settings import Settings


def offload_of(settings: Settings, processes: int = 1) -> Offload | None:
    """Return how a model may be spread, None with ``--aq-device-map single``.

    Args:
        processes: see ``Offload``.
    """
    if settings.device_map == "single":
        return None
    return Offload(max_memory=settings.max_memory, folder=settings.offload_dir, processes=processes)


def check_places(settings: Settings, source: ModelSource) -> None:
    """Refuse, before the first case, limits and folders that cannot hold the model.

    GPUs are not looked at: what depends on their free memory is known once the model is loaded.

    Raises:
        UsageError: ``--aq-max-memory`` is below one layer, or names a GPU that is not there.
        WriteError: the disk of ``--aq-offload-dir`` has too little space for random weights.
    """
    offload = offload_of(settings)
    if offload is None:
        return
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    is_random = settings.random_seed is not None
    with suppress(ModelError):  # loading the model says why
        module = empty_model(source, is_random, settings.trust_remote_code, dtype)
        if device.type == "cuda":
            gpu = device.index or 0
            limit = (offload.max_memory or MaxMemory()).of(str(gpu), computes=True)
            if limit is not None:
                check_limit(module, limit, dtype=dtype, of=gpu)
            return
        placed = device_map(module, device=device, dtype=dtype, offload=offload)
        if placed is not None and placed.folder is not None and is_random:
            check_space(placed.folder, disk_bytes(module, placed))
