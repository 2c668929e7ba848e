"""The model under measurement: loaded once, restored bit for bit after every engine."""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.errors import ModelError
from pytest_autoquant.manifests.sensitivity_manifest import ModelRecord
from pytest_autoquant.models.registry import EMBEDDED_TOKENIZER, ModelSource

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A language-model linear: weight shape ``(out_features, in_features)``.

    ModelOpt takes the fused experts of a layer as one unit. They stand here as one linear of the
    hidden width with as many weights.

    Attributes:
        input_widths: of every matrix in the module; ``in_features`` alone but for fused experts.
    """

    name: str
    module_type: str
    out_features: int
    in_features: int
    input_widths: tuple[int, ...]

    @property
    def is_fused(self) -> bool:
        """Whether this is a module of fused experts."""
        return len(self.input_widths) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, in eval mode.

    Attributes:
        linears: the language model's linears in module order; what is measured.
        others: names of every other module with weights that ModelOpt would search.
    """

    module: Any
    tokenizer: Any
    record: ModelRecord
    linears: tuple[Linear, ...]
    others: tuple[str, ...]
    device: torch.device

    def tokenize(self, lines: tuple[str, ...]) -> list[list[int]]:
        """Return token ids per caption, without special tokens."""
        return self.tokenizer(list(lines), add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    def tensor(self, batch: Batch) -> torch.Tensor:
        """Return a batch as ``(captions, tokens)`` ids on the model's device."""
        return torch.tensor(batch.rows, device=self.device)


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ModelError: CUDA is asked for and not there, or torch does not know the name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ModelError(f"--aq-device {name!r} is no device; give auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"--aq-device {name}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --aq-device cpu or a machine with a GPU"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype; ``auto`` is bf16 on CUDA and fp32 on CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def load_model(
    source: ModelSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    random_seed: int | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load an image-text or causal model from safetensors, or build it with random weights.

    Args:
        random_seed: seeds random weights of the full architecture; None loads the checkpoint.

    Raises:
        ModelError: nothing there, another kind of architecture, weights that do not fit, or a
            language model without linears.
    """
    config = _load_config(source, random=random_seed is not None, trust=trust_remote_code)
    auto = _auto_class(config, source)
    if random_seed is None:
        module = _from_checkpoint(auto, source, dtype, trust_remote_code).to(device)
        digest = _checkpoint_digest(source, module)
    else:
        torch.manual_seed(random_seed)
        with torch.device(device):
            module = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        digest = _sha256(
            f"random {random_seed} {device.type} {dtype} {config.to_json_string()}".encode()
        )
    module.eval()
    linears = language_model_linears(module)
    if not linears:
        raise ModelError(f"model {source.name}: its language model has no nn.Linear to measure")
    return LoadedModel(
        module=module,
        tokenizer=_load_tokenizer(source, random=random_seed is not None, trust=trust_remote_code),
        record=ModelRecord(
            id=source.public_id,
            name=source.name,
            architecture=type(module).__name__,
            weights="checkpoint" if random_seed is None else "random",
            dtype=str(dtype).removeprefix("torch."),
            num_parameters=module.num_parameters(),
            num_language_model_linears=len(linears),
            digest=digest,
        ),
        linears=linears,
        others=_other_weighted_modules(module, linears),
        device=device,
    )


def architecture_linears(source: ModelSource, *, trust_remote_code: bool) -> tuple[Linear, ...]:
    """Return the language model's linears without any weights, from its config alone."""
    config = _load_config(source, random=True, trust=trust_remote_code)
    with torch.device("meta"):
        module = _auto_class(config, source).from_config(
            config, trust_remote_code=trust_remote_code
        )
    return language_model_linears(module)


def language_model_linears(module: Any) -> tuple[Linear, ...]:
    """Return what ModelOpt quantizes in the decoder: its linears and fused experts, in order.

    Vision tower and ``lm_head`` are not in the decoder.
    """
    decoder = module.get_decoder()
    prefix = next(name for name, child in module.named_modules() if child is decoder)
    return tuple(
        _linear_info(f"{prefix}.{name}" if prefix else name, child)
        for name, child in decoder.named_modules()
        if isinstance(child, nn.Linear) or _stacked(child)
    )


def _linear_info(name: str, child: nn.Module) -> Linear:
    matrices = [child.weight] if isinstance(child, nn.Linear) else _stacked(child)
    widths = tuple(matrix.shape[-1] for matrix in matrices)
    return Linear(
        name=name,
        module_type=type(child).__name__,
        out_features=sum(matrix.numel() for matrix in matrices) // widths[0],
        in_features=widths[0],
        input_widths=widths,
    )


def _stacked(child: nn.Module) -> list[nn.Parameter]:
    """Return a module's own parameters that stack one matrix per expert."""
    if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return []
    return [parameter for parameter in child.parameters(recurse=False) if parameter.dim() == 3]


def peak_cuda_bytes(device: torch.device) -> int | None:
    """Return the most memory tensors took on a GPU since its peak was reset, None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def release_cuda_memory() -> None:
    """Return cached blocks to the GPU, after running out of memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def preserved(module: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Put a module tree back exactly as it was, whatever happens inside.

    Classes, attributes, hooks, buffers, ``requires_grad`` and Hugging Face configs are restored by
    identity. Weight values are copied back only with ``weights=True``, for calibration algorithms
    that change them.
    """
    children = list(module.modules())
    snapshots = [(child, type(child), _contents(child.__dict__)) for child in children]
    configs = {id(c): c for c in (getattr(child, "config", None) for child in children) if c}
    config_vars = [(config, dict(vars(config))) for config in configs.values()]
    parameters = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    values = [(p, p.detach().clone()) for p in module.parameters()] if weights else []
    try:
        yield
    finally:
        for child, cls, contents in snapshots:
            child.__class__ = cls
            _restore(child.__dict__, contents)
        for config, attributes in config_vars:
            vars(config).clear()
            vars(config).update(attributes)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)


_Contents = list[tuple[str, Any, Any]]


def _contents(attributes: dict[str, Any]) -> _Contents:
    """Remember attributes by identity, and what the containers among them held."""
    containers = (dict, list, set)
    return [
        (name, value, value.copy() if isinstance(value, containers) else None)
        for name, value in attributes.items()
    ]


def _restore(attributes: dict[str, Any], contents: _Contents) -> None:
    attributes.clear()
    for name, value, held in contents:
        attributes[name] = value
        if held is None:
            continue
        value.clear()
        value.extend(held) if isinstance(value, list) else value.update(held)


def _load_config(source: ModelSource, *, random: bool, trust: bool) -> Any:
    from transformers import AutoConfig

    location = str(source.architecture) if random and source.architecture else source.location
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model {source.name}: its config cannot be loaded from {source.public_id}: "
            f"{_first_line(error)}"
        ) from error


def _auto_class(config: Any, source: ModelSource) -> Any:
    """Return the Auto class whose model for this config is the one the checkpoint names."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    named = (getattr(config, "architectures", None) or [None])[0]
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        mapped = auto._model_mapping.get(type(config), None)
        if mapped is not None and named in (None, mapped.__name__):
            return auto
        if hasattr(config, "auto_map") and auto.__name__ in config.auto_map:
            return auto
    raise ModelError(
        f"model {source.name}: architecture {named or type(config).__name__} is neither an "
        "image-text nor a causal language model; give one of those"
    )


def _from_checkpoint(auto: Any, source: ModelSource, dtype: torch.dtype, trust: bool) -> Any:
    from safetensors import SafetensorError

    try:
        module, report = auto.from_pretrained(
            source.location,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"model {source.name}: its weights cannot be loaded from {source.public_id}: "
            f"{_first_line(error)}"
        ) from error
    mismatched = sorted(str(key[0]) for key in report["mismatched_keys"])
    if mismatched:
        raise ModelError(
            f"model {source.name}: {len(mismatched)} weights have another shape than its config "
            f"says, such as {mismatched[0]}"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model {source.name}: the checkpoint lacks {len(missing)} weights of "
            f"{type(module).__name__}, such as {missing[0]}; they would be random"
        )
    return module


def _load_tokenizer(source: ModelSource, *, random: bool, trust: bool) -> Any:
    from transformers import AutoTokenizer

    is_local = Path(source.location).is_dir()
    location = source.location if is_local or not random else str(EMBEDDED_TOKENIZER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model {source.name}: its tokenizer cannot be loaded from {source.public_id}: "
            f"{_first_line(error)}"
        ) from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"model {source.name}: {source.public_id} has no tokenizer; save one beside the weights"
        )
    return tokenizer


def _other_weighted_modules(module: nn.Module, linears: tuple[Linear, ...]) -> tuple[str, ...]:
    measured = {linear.name for linear in linears}
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return tuple(
        name
        for name, child in module.named_modules()
        if isinstance(child, (nn.Linear, *convolutions)) and name not in measured
    )


def _checkpoint_digest(source: ModelSource, module: Any) -> str:
    """Hash the config and weight files; of a hub checkpoint, the loaded weights."""
    digest = hashlib.sha256()
    folder = Path(source.location)
    if folder.is_dir():
        for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
