"""What ModelOpt's quantizers gave on this machine before, kept in the user's cache folder.

Only what ran is kept. A refusal is found out at once, and may have causes that no version tells,
such as a compiler that is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.files import load_json, read_bytes, write_atomic
from pytest_autoquant.platforms import cache_folder

#: sha256 of the fake-quantized probe, by tensor: ``weight`` or ``input``.
ProbeBits = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedOn:
    """What the bits of a probe depend on, beside the quantizers.

    Attributes:
        device: ``cpu``, or ``cuda`` with the GPU's compute capability.
        probe: sha256 of the code that probes.
    """

    modelopt: str
    torch_version: str
    triton: str
    device: str
    dtype: str
    probe: str

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, code: Path) -> ProbedOn:
        """Return what holds in this process.

        Args:
            code: file of the code that probes.
        """
        return cls(
            modelopt=_version("nvidia-modelopt"),
            torch_version=torch.__version__,
            triton=_version("triton"),
            device=_device(device),
            dtype=str(dtype),
            probe=hashlib.sha256(code.read_bytes()).hexdigest(),
        )

    @property
    def path(self) -> Path:
        """The file of the user's cache folder that holds its probes."""
        name = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return cache_folder() / "probes" / f"{name}.json"


class ProbeCache:
    """Remembers probes between runs, by a digest of what was probed.

    A file that cannot be read or written, or that holds anything else, is ignored: everything is
    probed then.

    Args:
        probed_on: None to remember nothing.
    """

    def __init__(self, probed_on: ProbedOn | None) -> None:
        self._probed_on = probed_on
        self._known = {} if probed_on is None else _read(probed_on)

    def get(self, key: str) -> ProbeBits | None:
        """Return what was probed before, None if it was not."""
        return self._known.get(key)

    def add(self, key: str, bits: ProbeBits) -> None:
        """Remember a probe, beside what other processes have added meanwhile."""
        if self._probed_on is None:
            return
        self._known = {**_read(self._probed_on), **self._known, key: dict(bits)}
        document = {"probed_on": asdict(self._probed_on), "bits": self._known}
        with suppress(WriteError):
            write_atomic(self._probed_on.path, json.dumps(document, indent=1), is_record=False)


def _read(probed_on: ProbedOn) -> dict[str, dict[str, str]]:
    try:
        document = load_json(read_bytes(probed_on.path))
    except (RecordError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("probed_on") != asdict(probed_on):
        return {}
    found = document.get("bits")
    if not isinstance(found, dict):
        return {}
    return {key: bits for key, bits in found.items() if _is_bits(bits)}


def _is_bits(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"weight", "input"}
        and all(isinstance(digest, str) for digest in value.values())
    )


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device.type)
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda {major}.{minor}"


def _version(package: str) -> str:
    try:
        found: str = version(package)
    except PackageNotFoundError:
        return ""
    return found
