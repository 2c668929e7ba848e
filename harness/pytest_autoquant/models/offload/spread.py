"""Puts the weights of a model where its device map says, and writes those that no memory holds."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import ChainMap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pytest_autoquant.errors import WriteError
from pytest_autoquant.models.offload.device_map import DISK, DeviceMap, readable_bytes
from pytest_autoquant.models.offload.random_weights import RandomWeights
from pytest_autoquant.models.offload.resident import dispatch, undispatch


def spread_loaded(module: Any, placed: DeviceMap) -> None:
    """Spread a model that transformers loaded to ``DeviceMap.on_loading``.

    Raises:
        ValueError: see ``resident.dispatch``.
    """
    index = undispatch(module)
    elsewhere = {
        name: tensor.to(_device(placed.place_of(name)))
        for name, tensor in module.state_dict().items()
        if placed.place_of(name) not in (placed.main, DISK)
    }
    dispatch(module, placed, elsewhere, index)


def fill_random(module: Any, weights: RandomWeights, device: torch.device) -> None:
    """Give a model random weights, all of them on one device."""
    _fill(module, weights, device, None)
    module.to(device)  # buffers


def spread_random(module: Any, weights: RandomWeights, placed: DeviceMap) -> None:
    """Spread a model of random weights.

    Those of ``disk`` are written if there is a folder for them, else made whenever they are needed.

    Raises:
        ValueError: see ``resident.dispatch``.
        WriteError: the folder cannot be written, or its disk has too little space.
    """
    _fill(module, weights, _device(placed.main), placed)
    elsewhere = {
        name: weights[name].to(_device(place))
        for name in weights
        if (place := placed.place_of(name)) not in (placed.main, DISK)
    }
    if placed.folder is None:
        dispatch(module, placed, ChainMap(elsewhere, weights))  # type: ignore[arg-type]
        return
    folder = own_folder(placed.folder)
    weakref.finalize(module, folder.cleanup)
    on_disk = [name for name in weights if placed.place_of(name) == DISK]
    check_space(placed.folder, disk_bytes(module, placed))
    dispatch(module, placed, elsewhere, _written(on_disk, weights, Path(folder.name)))


def own_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a new folder of this process, so that nothing that another one left is ever read.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=parent, prefix=".offload-")
    except OSError as error:
        raise _cannot_write(parent, error) from error


def disk_bytes(module: Any, placed: DeviceMap) -> int:
    """Return the size of the weights whose place is the disk."""
    return sum(
        tensor.nbytes for name, tensor in module.named_parameters() if placed.place_of(name) == DISK
    )


def check_space(folder: Path, needed: int) -> None:
    """Refuse a folder whose disk has less than ``needed`` bytes left.

    Raises:
        WriteError: says how much there is and how much is needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WriteError(
            f"offload folder {folder}: {readable_bytes(free)} are free, and "
            f"{readable_bytes(needed)} of weights are to be written; choose another one with "
            "--aq-offload-dir, or leave it out"
        )


def _fill(
    module: Any, weights: RandomWeights, device: torch.device, placed: DeviceMap | None
) -> None:
    """Set the parameters whose place is the device that computes."""
    from accelerate.utils import set_module_tensor_to_device

    for name, child in module.named_modules():
        own = [key for key, _ in child.named_parameters(recurse=False)]
        first = f"{name}.{own[0]}" if name and own else "".join(own[:1])
        if not own or weights.is_shared(first):
            continue
        if placed is None or placed.place_of(first) == placed.main:
            for key, value in weights.of_module(name).items():
                set_module_tensor_to_device(child, key, device, value=value)
    module.tie_weights()


def _written(
    names: Iterable[str], weights: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, dict[str, str]]:
    """Write weights, one file each; return the index by which accelerate reads them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    index = {}
    for name in names:
        path, weight = folder / f"{name}.safetensors", weights[name].cpu().contiguous()
        try:
            save_file({name: weight}, path)
        except (OSError, SafetensorError) as error:
            raise _cannot_write(folder.parent, error) from error
        dtype = str(weight.dtype).removeprefix("torch.")
        index[name] = {"safetensors_file": str(path), "weight_name": name, "dtype": dtype}
    return index


def _device(place: int | str) -> torch.device:
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def _cannot_write(folder: Path, error: Exception) -> WriteError:
    reason = getattr(error, "strerror", None) or error
    return WriteError(
        f"offload folder {folder}: cannot be written ({reason}); choose another one with "
        "--aq-offload-dir"
    )
