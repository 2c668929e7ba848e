"""Read the files of a Hugging Face checkpoint without trusting them: JSON, safetensors headers.

safetensors checks each header (offsets, sizes, dtypes); torch is not needed. The tensors themselves
are read once, in pieces, for values that are not finite and for the range of scales.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.tensor_values import Bytes, Values, summarize
from pytest_autoquant.files import load_json
from pytest_autoquant.text import one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: What a user can do about a damaged checkpoint; the end of most messages.
EXPORT_AGAIN = "export the model again"

#: Longest part of a file's content that a message quotes, in characters.
QUOTE_LENGTH = 200

#: Largest JSON file that is read, in bytes. safetensors has the same limit for its headers.
_MAX_JSON_BYTES = 100_000_000

#: Dtypes of layers that are not quantized.
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")

_JSON_TYPES: Mapping[type, str] = {dict: "an object", list: "a list", str: "a string"}
_SCALE_NAME = re.compile(r"\w+_scale(_2|_inv)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of a safetensors file.

    Attributes:
        dtype: safetensors' name, such as ``F8_E4M3``.
        values: what it holds; only scales have a range.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Values = field(default=Values(), compare=False)

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
        """Whether the name is that of a quantization scale."""
        return is_scale_name(self.name)

    @property
    def is_quantized_weight(self) -> bool:
        """Whether it is a weight in a dtype that no unquantized layer has."""
        return self.kind == "weight" and self.dtype not in PLAIN_DTYPES


def last_part(name: str) -> str:
    """Return the part of a dotted name after its last dot."""
    return name.rpartition(".")[2]


def is_scale_name(name: str) -> bool:
    """Whether a tensor's name ends like a quantization scale, e.g. ``weight_scale_2``."""
    return _SCALE_NAME.fullmatch(last_part(name)) is not None


def read_tensors(folder: Path) -> Mapping[str, Tensor]:
    """Read the tensors that vLLM would load: of the index's files, else of the single file.

    Raises:
        ExportError: a file is missing or damaged, or the index and the files disagree.
    """
    index = folder / INDEX
    if not path_exists(index):
        return {tensor.name: tensor for tensor in _file_tensors(_single_file(folder))}
    files = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        for tensor in _file_tensors(folder / file):
            _check_place(index, tensor.name, file, files.get(tensor.name))
            tensors[tensor.name] = tensor
    missing = next((name for name in files if name not in tensors), None)
    if missing is not None:
        raise ExportError(
            f"{index}: maps {_quote(missing)} to {files[missing]}, which does not hold it; "
            f"{EXPORT_AGAIN}"
        )
    return tensors


def _check_place(index: Path, name: str, file: str, mapped: str | None) -> None:
    if mapped == file:
        return
    where = "no file" if mapped is None else _quote(mapped)
    raise ExportError(
        f"{index}: maps {_quote(name)} to {where}, but {file} holds it; {EXPORT_AGAIN}"
    )


def _single_file(folder: Path) -> Path:
    """Return the only weights file; without an index vLLM loads every ``*.safetensors`` file."""
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != WEIGHTS)
    if others:
        raise ExportError(
            f"{folder}: holds {_quote(others[0])} but no {INDEX}; {EXPORT_AGAIN} to an empty folder"
        )
    return folder / WEIGHTS


def _weight_map(index: Path) -> Mapping[str, str]:
    """Return the file of each tensor, every one a plain file name."""
    files = entry_of(read_object(index), "weight_map", dict, index)
    if not files:
        raise malformed(index, "weight_map", "an object with a file name per tensor", files)
    for name, file in files.items():
        if not isinstance(file, str) or not _is_plain_file_name(file):
            raise malformed(
                index,
                f"weight_map[{name!r}]",
                "the name of a .safetensors file in the same folder",
                file,
            )
    return {str(name): file for name, file in files.items()}


def _is_plain_file_name(name: str) -> bool:
    is_bare = PurePath(name).name == name and not set(name) & set("/\\:\0")
    return is_bare and name.endswith(".safetensors") and one_line(name) == name


def _file_tensors(path: Path) -> list[Tensor]:
    """Read a safetensors file.

    Raises:
        ExportError: the file is missing, cannot be read or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    _check_is_file(path)
    try:
        with safe_open(path, framework="np"):  # checks the header against the file
            return list(_tensors(np.memmap(path, np.uint8, "r")))
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError) as error:
        raise ExportError(
            f"{path}: not a valid safetensors file: {_quote(error)}; {EXPORT_AGAIN}"
        ) from error


def _tensors(content: Bytes) -> Iterator[Tensor]:
    """Yield the tensors of a file whose header is valid.

    Source: https://github.com/huggingface/safetensors#format: eight bytes with the header's length,
    the header, and the tensors at the header's offsets.
    """
    begin = 8 + int(content[:8].view("<u8")[0])
    for name, entry in load_json(content[8:begin].tobytes()).items():
        if name != "__metadata__":
            first, end = (begin + offset for offset in entry["data_offsets"])
            raw, dtype = content[first:end], entry["dtype"]
            yield Tensor(
                name=name,
                dtype=dtype,
                shape=tuple(entry["shape"]),
                values=summarize(raw, dtype, with_range=is_scale_name(name)),
            )


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ExportError: the file is missing, unreadable, too large or holds anything else.
    """
    _check_is_file(path)
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ExportError(f"{path}: larger than {_MAX_JSON_BYTES} bytes; {EXPORT_AGAIN}")
        document = load_json(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise ExportError(f"{path}: not valid JSON: {_quote(error)}; {EXPORT_AGAIN}") from error
    if not isinstance(document, dict):
        raise ExportError(f"{path}: must hold a JSON object; {EXPORT_AGAIN}")
    return document


def _check_is_file(path: Path) -> None:
    if not succeeds(path.is_file):
        raise ExportError(
            f"{path}: no such file; give a complete folder written by export_hf_checkpoint"
        )


def path_exists(path: Path) -> bool:
    """Whether there is an entry of this name, a broken link included."""
    return succeeds(path.exists) or succeeds(path.is_symlink)


def succeeds(query: Callable[[], bool]) -> bool:
    """Ask about a path; a path that is too long or may not be searched counts as absent."""
    try:
        return query()
    except OSError:
        return False


def unreadable(path: Path, error: OSError) -> ExportError:
    """Return the error for a file that the operating system refuses to read."""
    return ExportError(f"{path}: cannot be read: {error.strerror or error}; make the file readable")


def entry_of(raw: Mapping[str, Any], key: str, wanted: type, path: Path) -> Any:
    """Return ``raw[key]``, None where the key is absent or null.

    Raises:
        ExportError: the value has another type than ``wanted``.
    """
    value = raw.get(key)
    if value is not None and not isinstance(value, wanted):
        raise malformed(path, key, _JSON_TYPES[wanted], value)
    return value


def malformed(path: Path, key: str, wanted: str, value: object) -> ExportError:
    """Return the error for an entry of the wrong type."""
    return ExportError(
        f"{path}: {_quote(key)} must be {wanted}, got {_quote(repr(value))}; {EXPORT_AGAIN}"
    )


def _quote(value: object) -> str:
    return one_line(value, QUOTE_LENGTH)
