"""Refuses a checkpoint that is quantized already: scores are of quantizing the 16-bit weights.

transformers 5.14 loads such a checkpoint without its scales where it does not know the format, and
says so in a log line only. So the files are looked at: what they declare, and what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_autoquant.errors import ModelError
from pytest_autoquant.files import load_json
from pytest_autoquant.models.architecture import cannot_load
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.text import counted, one_line

#: Keys under which a config declares how its weights are quantized, also one nested in it.
_DECLARATIONS = ("quantization_config", "compression_config")

#: Entries of a declaration that say more than its ``quant_method``, in the order of the message.
_DETAILS = ("quant_algo", "format", "fmt", "bits", "load_in_4bit", "load_in_8bit")

#: ModelOpt writes its declaration into a file of its own as well.
_MODELOPT_FILE = "hf_quant_config.json"

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

#: Dtypes of quantized weights only, by safetensors' names.
_QUANTIZED_DTYPE = re.compile(r"F[468]_\w+|F4")

#: Bytes hold packed weights, but also attention masks of old checkpoints (``attn.bias``).
_BYTE_DTYPES = ("I8", "U8")
_MASK = re.compile(r"(^|\.)(masked_)?bias$|mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """Last parts of tensor names by which a maker's checkpoints are recognized."""

    maker: str
    names: re.Pattern[str]


#: Tensors as bitsandbytes, AutoGPTQ and AutoAWQ, compressed-tensors, HQQ, AQLM and optimum-quanto
#: name them; scales of the last kind are written by ModelOpt, DeepSeek, FBGEMM and Quark.
_MARKS = (
    _Mark(
        maker="bitsandbytes",
        names=re.compile(r"(nested_)?(absmax|quant_map)|SCB|bitsandbytes__\w+"),
    ),
    _Mark(maker="GPTQ or AWQ", names=re.compile(r"qweight|qzeros|g_idx")),
    _Mark(
        maker="compressed-tensors",
        names=re.compile(r"weight_packed|(weight|input)_(zero_point|global_scale)"),
    ),
    _Mark(maker="HQQ", names=re.compile(r"W_q")),
    _Mark(maker="AQLM", names=re.compile(r"codebooks")),
    _Mark(maker="quanto", names=re.compile(r"_data|_scale")),
    _Mark(
        maker="ModelOpt or another maker of scales",
        names=re.compile(r"weight_scales?(_inv|_2)?|(input|activation|pre_quant)_scale"),
    ),
)


def refuse_declared(source: ModelSource, declared: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose ``config.json`` declares that it is quantized.

    Raises:
        ModelError: with the method that is declared.
    """
    for declaration in _declarations(declared):
        raise _quantized(source, f"config.json says {_described(declaration)}")


def refuse_stored(source: ModelSource, folder: Path) -> None:
    """Refuse a folder with ModelOpt's declaration, or with tensors of quantized weights.

    Only the headers of the files that transformers loads are read.

    Raises:
        ModelError: with what is declared or stored, or if a file is damaged.
    """
    declared = folder / _MODELOPT_FILE
    if declared.is_file():
        raise _quantized(source, f"{_MODELOPT_FILE} says {_modelopt_algorithm(declared)}")
    tensors = dict(_tensors(source, folder))
    for name in tensors:
        if (maker := _maker(name)) is not None:
            raise _quantized(source, f"it holds {name}, as {maker} writes it")
    stored = [name for name, dtype in tensors.items() if _is_packed(name, dtype)]
    if stored:
        name = stored[0]
        raise _quantized(
            source, f"{counted(len(stored), 'tensor')} such as {name} stored as {tensors[name]}"
        )


def _quantized(source: ModelSource, reason: str) -> ModelError:
    return ModelError(
        f"model {source.name}: the checkpoint is already quantized: {one_line(reason, 300)}; give "
        "the 16-bit checkpoint that it was made from"
    )


def _declarations(config: Mapping[str, Any]) -> Iterator[Any]:
    """Yield every declaration in a config, the outermost first."""
    for key in _DECLARATIONS:
        if config.get(key):
            yield config[key]
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _declarations(value)


def _described(declaration: Any) -> str:
    if not isinstance(declaration, Mapping):
        return str(declaration)
    method = declaration.get("quant_method", "a method without a name")
    details = [f"{key} {declaration[key]}" for key in _DETAILS if declaration.get(key)]
    return ", ".join([str(method), *details])


def _modelopt_algorithm(path: Path) -> str:
    try:
        return f"modelopt, quant_algo {load_json(path.read_bytes())['quantization']['quant_algo']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "modelopt"  # the file alone says so, whatever is in it


def _maker(name: str) -> str | None:
    """Return whose checkpoints have a tensor of this name, None if it is none of a quantizer."""
    last = name.rpartition(".")[2]
    return next((mark.maker for mark in _MARKS if mark.names.fullmatch(last)), None)


def _is_packed(name: str, dtype: str) -> bool:
    is_bytes = dtype in _BYTE_DTYPES and not _MASK.search(name)
    return is_bytes or _QUANTIZED_DTYPE.fullmatch(dtype) is not None


def _tensors(source: ModelSource, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and dtype of every tensor that transformers would load."""
    from safetensors import SafetensorError, safe_open

    try:
        for path in _weight_files(folder):
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                    yield name, file.get_slice(name).get_dtype()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise cannot_load(source, "weights", error) from error


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads: the single one, else those of the index."""
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    names = load_json(index.read_bytes())["weight_map"].values()
    return [folder / name for name in sorted(set(names))]
