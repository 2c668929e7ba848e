"""The files of a Hugging Face checkpoint, read without trusting them: JSON and safetensors headers.

Neither torch nor safetensors is needed: a header is a length and JSON, and nothing but small scales
is read beyond it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from pytest_autoquant.errors import ModelError
from pytest_autoquant.files import load_json
from pytest_autoquant.text import one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

EXPORT_AGAIN = "export the model again"
_MOST_JSON = 100_000_000
_MOST_DIMENSIONS = 64
LONGEST = 200
_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits per element of every dtype that safetensors has."""
_JSON_TYPES: Mapping[type, str] = {dict: "an object", list: "a list", str: "text"}
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
_SCALE = re.compile(r"\w+_scale(_2|_inv)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of a safetensors file, not read yet; its bytes are ``start`` to ``stop``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int

    @property
    def module(self) -> str:
        """The name without its last part."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """The last part of the name, such as ``weight``."""
        return last_part(self.name)

    @property
    def is_scale(self) -> bool:
        """Whether its name is that of a scale."""
        return _SCALE.fullmatch(self.kind) is not None

    @property
    def is_quantized_weight(self) -> bool:
        """Whether it is a weight in a dtype that no unquantized layer has."""
        return self.kind == "weight" and self.dtype not in PLAIN_DTYPES

    def floats(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Read an F32 tensor, flat.

        Raises:
            ModelError: the file is no longer what its header said.
        """
        try:
            found = np.fromfile(self.path, "<f4", count=prod(self.shape), offset=self.start)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if found.size != prod(self.shape):
            raise ModelError(f"{self.path}: changed while it was read; {EXPORT_AGAIN}")
        return found


def read_tensors(folder: Path) -> Mapping[str, Tensor]:
    """Read the headers of the files that vLLM would load: those of the index, if there is one."""
    index = folder / INDEX
    if not (is_there(index.exists) or index.is_symlink()):
        return {tensor.name: tensor for tensor in _file_tensors(_only_file(folder))}
    places = _places(index)
    found: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        for tensor in _file_tensors(folder / shard):
            if places.get(tensor.name) != shard:
                raise ModelError(
                    f"{index}: {one_line(tensor.name, LONGEST)} is in {shard}, and the index says "
                    f"{one_line(places.get(tensor.name, 'nothing'), LONGEST)}; {EXPORT_AGAIN}"
                )
            found[tensor.name] = tensor
    for name, shard in places.items():
        if name not in found:
            raise ModelError(
                f"{index}: {one_line(name, LONGEST)} is said to be in {shard} and is not; "
                f"{EXPORT_AGAIN}"
            )
    return found


def _only_file(folder: Path) -> Path:
    """Return the single weights file; without an index vLLM loads every one there is."""
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != WEIGHTS)
    if others:
        raise ModelError(
            f"{folder}: holds {one_line(others[0], LONGEST)} and no {INDEX}; {EXPORT_AGAIN} to "
            "an empty folder"
        )
    return folder / WEIGHTS


def _places(index: Path) -> Mapping[str, str]:
    """Return in which file of its own folder each tensor is."""
    places = entry_of(read_object(index), "weight_map", dict, index)
    if not places:
        raise malformed(index, "weight_map", "an object that names a file per tensor", places)
    for name, shard in places.items():
        if not isinstance(shard, str) or not _is_plain_file_name(shard):
            raise malformed(
                index, f"weight_map[{name!r}]", "the name of a .safetensors file beside it", shard
            )
    return {str(name): shard for name, shard in places.items()}


def _is_plain_file_name(name: str) -> bool:
    is_bare = PurePath(name).name == name and not set(name) & set("/\\:\0")
    return is_bare and name.endswith(".safetensors") and one_line(name) == name


def _file_tensors(path: Path) -> list[Tensor]:
    """Read a header: 8 bytes of its length, JSON, then the tensors end to end.

    Raises:
        ModelError: lengths or offsets that do not add up to the size of the file.
    """
    header, begin, size = _header(path)
    tensors = [
        _described(name, entry, path, begin)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    end = begin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            raise _bad_header(
                path, f"{tensor.name} begins at byte {tensor.start}, what precedes it ends at {end}"
            )
        end = tensor.stop
    if end != size:
        raise _bad_header(path, f"its tensors end at byte {end}, the file at {size}")
    return tensors


def _header(path: Path) -> tuple[Mapping[str, Any], int, int]:
    """Return a file's header, where its tensors begin, and its size in bytes."""
    _check_file(path)
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            if size < 8:
                raise _bad_header(path, f"it is {size} bytes long")
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, _MOST_JSON):
                raise _bad_header(path, f"its header is {length} bytes long, the file {size}")
            content = stream.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    return _parsed(content, path), 8 + length, size


def _described(name: str, entry: object, path: Path, begin: int) -> Tensor:
    """Return a tensor whose size its dtype, its shape and its offsets agree about."""
    given = entry if isinstance(entry, dict) else {}
    bits = _BITS.get(str(given.get("dtype")))
    shape, span = _counts(given.get("shape")), _counts(given.get("data_offsets"))
    if bits is None or shape is None or span is None or len(span) != 2:
        raise _bad_header(path, f"{name} is {entry!r}")
    if 8 * (span[1] - span[0]) != prod(shape) * bits:
        raise _bad_header(path, f"{name} is {entry!r}, whose size is another")
    return Tensor(
        name=name,
        dtype=given["dtype"],
        shape=shape,
        path=path,
        start=begin + span[0],
        stop=begin + span[1],
    )


def _counts(given: object) -> tuple[int, ...] | None:
    """Return a list of a few whole numbers as a tuple, None if it is anything else."""
    if not isinstance(given, list) or len(given) > _MOST_DIMENSIONS:
        return None
    return tuple(given) if all(type(n) is int and 0 <= n < 2**63 for n in given) else None


def _bad_header(path: Path, problem: str) -> ModelError:
    return ModelError(
        f"{path}: is no whole safetensors file: {one_line(problem, LONGEST)}; {EXPORT_AGAIN}"
    )


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ModelError: it is missing, unreadable, too large or none.
    """
    _check_file(path)
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ModelError(f"{path}: is larger than {_MOST_JSON} bytes; {EXPORT_AGAIN}")
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return _parsed(content, path)


def _parsed(content: bytes, path: Path) -> Mapping[str, Any]:
    try:
        document = load_json(content)
    except ValueError as error:
        problem = one_line(error, LONGEST)
        raise ModelError(f"{path}: is not JSON: {problem}; {EXPORT_AGAIN}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: holds no JSON object; {EXPORT_AGAIN}")
    return document


def _check_file(path: Path) -> None:
    if not is_there(path.is_file):
        raise ModelError(
            f"{path}: no such file; give a folder that export_hf_checkpoint has written whole"
        )


def is_there(look: Callable[[], bool]) -> bool:
    """Look at a path that may be too long, or below a folder that may not be searched."""
    try:
        return look()
    except OSError:
        return False


def unreadable(path: Path, error: OSError) -> ModelError:
    """Return the error for a file that cannot be read."""
    return ModelError(f"{path}: cannot be read: {error.strerror or error}; make it readable")


def entry_of(raw: Mapping[str, Any], key: str, wanted: type, path: Path) -> Any:
    """Return ``raw[key]``, None where there is none."""
    value = raw.get(key)
    if value is not None and not isinstance(value, wanted):
        raise malformed(path, key, _JSON_TYPES[wanted], value)
    return value


def malformed(path: Path, key: str, wanted: str, given: object) -> ModelError:
    """Return the error for an entry that is not what it must be."""
    return ModelError(
        f"{path}: {one_line(key, LONGEST)} is {one_line(repr(given), LONGEST)}; it must be "
        f"{wanted}; {EXPORT_AGAIN}"
    )


def last_part(name: str) -> str:
    """Return a dotted name's last part."""
    return name.rpartition(".")[2]
