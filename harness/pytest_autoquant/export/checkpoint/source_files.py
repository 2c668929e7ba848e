"""What an export keeps of the checkpoint that it was made from, byte for byte.

transformers writes a config and a tokenizer in the style of its own version, and a model that was
loaded in fp32 as fp32: older servers and the disk want what the source has.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.files import INDEX, is_scale_name
from pytest_autoquant.export.checkpoint.tensors import CheckpointTensors, weight_files
from pytest_autoquant.files import load_json, write_atomic
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.text import in_words

_CONFIG = "config.json"

#: Files of a checkpoint beside its config and weights, as patterns of names: tokenizer, processor,
#: generation config, licence.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def source_folder(model: LoadedModel, source: ModelSource) -> Path | None:
    """Return the folder of the checkpoint that was loaded, None for random weights.

    The files of a hub id lie in the local cache; what loading did not need of them is downloaded.

    Raises:
        ExportError: the hub's files can be neither found nor downloaded.
    """
    if model.record.weights == "random":
        return None
    if source.is_local:
        return Path(source.location)
    from huggingface_hub import constants, snapshot_download

    wanted = [_CONFIG, INDEX, "*.safetensors", *_COMPANIONS]
    try:
        return Path(
            snapshot_download(
                source.location,
                revision=model.record.commit,
                allow_patterns=wanted,
                # Offline, it would still ask the hub which files a commit has.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except (OSError, ValueError) as error:
        raise ExportError(
            f"model {source.name}: the files of {source.location} cannot be found: "
            f"{in_words(error)}"
        ) from error


def keep_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, processor, generation config and licence unchanged."""
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def keep_config(source: Path, folder: Path) -> None:
    """Replace an export's config by the source's, with ``quantization_config`` added."""
    exported = load_json((folder / _CONFIG).read_bytes())
    config = load_json((source / _CONFIG).read_bytes())
    added = {
        key: exported[key]
        for key in ("architectures", "quantization_config")
        if key in exported and config.get(key) is None
    }
    if added:
        text = json.dumps(config | added, indent=2, ensure_ascii=False) + "\n"
        write_atomic(folder / _CONFIG, text)
    else:
        shutil.copyfile(source / _CONFIG, folder / _CONFIG)


def keep_tensors(source: CheckpointTensors, folder: Path) -> None:
    """Replace every tensor that is not quantized by the source's own.

    A tensor that the source has under no name of its own (transformers merges some while it loads)
    gets the source's common dtype where that is exact.
    """
    total = sum(_keep_file(source, path) for path in weight_files(folder))
    index = folder / INDEX
    if index.is_file():
        document = load_json(index.read_bytes())
        document["metadata"] = document.get("metadata", {}) | {"total_size": total}
        write_atomic(index, json.dumps(document, indent=2) + "\n")


def _keep_file(source: CheckpointTensors, path: Path) -> int:
    """Rewrite one file if a tensor of it changes; return the bytes of its tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata: Mapping[str, str] | None = file.metadata()
        exported = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kept = {name: _kept(source, name, tensor) for name, tensor in exported.items()}
    if any(kept[name].dtype != tensor.dtype for name, tensor in exported.items()):
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        save_file(kept, temporary, metadata=dict(metadata or {}))
        temporary.replace(path)
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def _kept(source: CheckpointTensors, name: str, exported: torch.Tensor) -> torch.Tensor:
    if exported.dtype not in _FLOATS or is_scale_name(name):
        return exported
    original = source.get(name)
    if original is None:
        original = exported.to(source.common_dtype)
    is_exact = torch.equal(original.to(exported.dtype), exported)
    return original if is_exact else exported
