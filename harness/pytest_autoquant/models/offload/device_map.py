"""Where the weights of a model stay: on the device that computes, elsewhere in memory, or on disk.

Only one device computes. Other GPUs hold weights as host memory does, closer: layers are measured
one at a time, so a second GPU could not compute at the same time, and every tensor that is compared
is on one device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_autoquant.errors import UsageError
from pytest_autoquant.models.offload.max_memory import MaxMemory

#: A GPU by its index, ``cpu`` or ``disk``.
Place = int | str

DISK = "disk"

#: Of the free memory of a device, what weights may take: a layer that is measured needs room for
#: its recorded tensors and quantized weights.
_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """How a model may be spread.

    Attributes:
        max_memory: limits; None for a share of what is free.
        folder: where weights are written that no memory holds; None to read them from the
            checkpoint, or to make random ones, each time they are needed.
        processes: how many processes share the host's memory.
    """

    max_memory: MaxMemory | None = None
    folder: Path | None = None
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """The place of each module.

    Attributes:
        main: the device that computes.
        places: by module name, that of its tensors and those of its submodules, as accelerate's
            ``infer_auto_device_map`` returns it; the name of the whole model is empty.
        size: number of the model's parameters, shared ones counted once.
        folder: see ``Offload``.
    """

    main: Place
    places: Mapping[str, Place]
    size: int
    folder: Path | None = None

    def num_parameters(self) -> int:
        """Return ``size``: a model whose shared weights are offloaded counts them twice."""
        return self.size

    def place_of(self, name: str) -> Place:
        """Return the place of a tensor by its name."""
        prefix = name
        while prefix and prefix not in self.places:
            prefix = prefix.rpartition(".")[0]
        return self.places[prefix]

    def on_loading(self) -> dict[str, Place]:
        """Return where a checkpoint is loaded to: what other GPUs hold comes by way of the host."""
        return {
            name: place if place in (self.main, DISK) else "cpu"
            for name, place in self.places.items()
        }


def device_map(
    module: Any, *, device: torch.device, dtype: torch.dtype, offload: Offload
) -> DeviceMap | None:
    """Place a model by accelerate's rules; None if the device that computes holds all of it.

    Args:
        module: the model on the meta device.
        device: the device that computes; ``cuda`` without an index lets every GPU hold weights.

    Raises:
        UsageError: ``--aq-max-memory`` names a GPU that is not there, or is below one layer.
    """
    from accelerate import infer_auto_device_map

    limits = _limits(device, offload)
    main = next(iter(limits))
    check_limit(module, limits[main], dtype=dtype, of=main)
    places = infer_auto_device_map(
        module, max_memory=limits, no_split_module_classes=_unsplit(module), dtype=dtype
    )
    if set(places.values()) == {main}:
        return None
    size = module.num_parameters()
    return DeviceMap(main=main, places=places, size=size, folder=offload.folder)


def check_limit(module: Any, limit: int, *, dtype: torch.dtype, of: Place) -> None:
    """Refuse less memory than the largest layer takes; a layer is computed as a whole.

    Args:
        module: the model on the meta device.
        limit: bytes.
        of: the device of the limit.

    Raises:
        UsageError: says how much is needed.
    """
    need, layer = largest_layer(module, dtype)
    if limit < need:
        where = "of the host" if of == "cpu" else f"of GPU {of}"
        raise UsageError(
            f"--aq-max-memory: weights may take {readable_bytes(limit)} {where}, and one layer, "
            f"{layer}, takes {readable_bytes(need)}; allow at least as much"
        )


def largest_layer(module: Any, dtype: torch.dtype) -> tuple[int, str]:
    """Return the bytes and the name of the largest module that computes as a whole."""
    from accelerate.utils import compute_module_sizes, get_max_layer_size

    sizes = compute_module_sizes(module, dtype=dtype)
    need, names = get_max_layer_size(list(module.named_children()), sizes, _unsplit(module))
    return need, names[0]


def _unsplit(module: Any) -> list[str]:
    """Return the classes of modules that compute as a whole: transformers knows them."""
    return sorted(module._no_split_modules or ())


def _limits(device: torch.device, offload: Offload) -> dict[Place, int]:
    """Return the bytes that weights may take by device, that which computes first."""
    given = offload.max_memory or MaxMemory()
    gpus = _gpus(device)
    missing = set(given.by_device) - {str(gpu) for gpu in gpus} - {"cpu"}
    if missing:
        raise UsageError(
            f"--aq-max-memory names GPU {min(missing)}, and this process computes on "
            f"{device} and may use {len(gpus)} GPUs; name 0 to N-1, or cpu"
        )
    limits: dict[Place, int] = {}
    for gpu in gpus:
        limit = given.of(str(gpu), computes=True)
        limits[gpu] = int(_SHARE * torch.cuda.mem_get_info(gpu)[0]) if limit is None else limit
    limit = given.of("cpu", computes=not gpus)
    limits["cpu"] = _free_host_bytes(offload.processes) if limit is None else limit
    return limits


def _gpus(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return list(range(torch.cuda.device_count())) if device.index is None else [device.index]


def _free_host_bytes(processes: int) -> int:
    from psutil import virtual_memory

    return int(_SHARE * virtual_memory().available / processes)


def readable_bytes(size: int) -> str:
    """Return a size in a unit in which it has at least two digits before the point."""
    for unit, bytes_each in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= 10 * bytes_each:
            return f"{-(-size * 10 // bytes_each) / 10:.1f} {unit}"
    return f"{size} bytes"
