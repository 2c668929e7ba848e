"""Loads the model that is measured: a checkpoint, or its architecture with random weights."""

from __future__ import annotations

import hashlib
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.errors import ModelError
from pytest_autoquant.manifests.records.sensitivity_manifest import ModelRecord
from pytest_autoquant.models.architecture import (
    auto_class,
    cannot_load,
    empty_model,
    load_config,
    raw_config,
)
from pytest_autoquant.models.checkpoint_digest import files_digest
from pytest_autoquant.models.layers import Linear, language_model_linears, other_weighted_modules
from pytest_autoquant.models.offload.device_map import DeviceMap, Offload, device_map
from pytest_autoquant.models.offload.random_weights import RandomWeights
from pytest_autoquant.models.offload.resident import held, is_offloaded
from pytest_autoquant.models.offload.spread import (
    fill_random,
    own_folder,
    spread_loaded,
    spread_random,
)
from pytest_autoquant.models.quantized_checkpoint import refuse_declared, refuse_stored
from pytest_autoquant.models.registry import EMBEDDED_TOKENIZER, ModelSource
from pytest_autoquant.models.weight_values import check_finite, dead_linears
from pytest_autoquant.text import first_few, in_words

#: Buffers that old checkpoints hold and today's models compute.
_COMPUTED = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, in eval mode.

    Attributes:
        linears: the measured linears of the language model, in module order.
        others: names of the other modules with weights that ModelOpt would search.
        device: on which the model computes.
        dead: names of the linears with a weight matrix of zeros only.
        is_offloaded: whether some weights stay elsewhere and are brought when they are needed; see
            ``resident``.
    """

    module: Any
    tokenizer: Any
    record: ModelRecord
    linears: tuple[Linear, ...]
    others: tuple[str, ...]
    device: torch.device
    dead: tuple[str, ...] = ()
    is_offloaded: bool = False

    def tokenize(self, lines: tuple[str, ...]) -> list[list[int]]:
        """Return token ids per caption, without special tokens."""
        return self.tokenizer(list(lines), add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    @property
    def max_positions(self) -> int | None:
        """Most tokens that the model has positions for; None if its config names no limit."""
        text_config = self.module.config.get_text_config(decoder=True)
        positions: int | None = getattr(text_config, "max_position_embeddings", None)
        return positions

    def tensor(self, batch: Batch) -> torch.Tensor:
        """Return a batch as ``(captions, tokens)`` ids on the model's device."""
        return torch.tensor(batch.rows, device=self.device)


def load_model(
    source: ModelSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    random_seed: int | None = None,
    trust_remote_code: bool = False,
    offload: Offload | None = None,
) -> LoadedModel:
    """Load an image-text or causal language model.

    Everything that comes from the hub is read at one commit, also if its branch moves meanwhile.

    Args:
        random_seed: seed of random weights for the full architecture; None loads the checkpoint's
            safetensors.
        offload: how the model may be spread where one device cannot hold it; None to load it whole.

    Raises:
        UsageError: see ``offload.device_map``.
        ModelError: config, weights or tokenizer cannot be loaded, the architecture is of another
            kind, the checkpoint is quantized already, its weights do not fit the architecture or
            are not finite, or its language model has no linears.
    """
    is_random = random_seed is not None
    commit = _commit(source) if source.reads_hub(random_weights=is_random) else None
    source = replace(source, revision=commit or source.revision)
    placed = None
    if offload is not None:
        empty = empty_model(source, is_random, trust_remote_code, dtype)
        placed = device_map(empty, device=device, dtype=dtype, offload=offload)
    if random_seed is None:
        module, digest = _load_checkpoint(source, device, dtype, trust_remote_code, placed)
    else:
        module, digest = _build_random(
            source, device, dtype, random_seed, trust_remote_code, placed
        )
    module.eval()
    linears = language_model_linears(module)
    if not linears:
        raise ModelError(f"model {source.name}: its language model has no nn.Linear to measure")
    check_finite(source, module)
    if any(linear.is_fused for linear in linears):
        # ModelOpt sees the products of experts in this forward only, and switches to it as well.
        module.set_experts_implementation("eager")
    return LoadedModel(
        module=module,
        tokenizer=_load_tokenizer(source, is_random, trust_remote_code),
        record=ModelRecord(
            id=source.public_id,
            name=source.name,
            architecture=type(module).__name__,
            weights="random" if is_random else "checkpoint",
            dtype=str(dtype).removeprefix("torch."),
            num_parameters=(module if placed is None else placed).num_parameters(),
            num_language_model_linears=len(linears),
            digest=digest,
            commit=commit,
        ),
        linears=linears,
        others=other_weighted_modules(module, linears),
        device=device,
        dead=dead_linears(module, linears),
        is_offloaded=is_offloaded(module),
    )


def _commit(source: ModelSource) -> str | None:
    """Return the commit of the hub's repository that the source's revision is at."""
    commit: str | None = raw_config(source).get("_commit_hash")
    return commit


def _load_checkpoint(
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    placed: DeviceMap | None,
) -> tuple[Any, str]:
    """Return the checkpoint's model and digest."""
    folder = Path(source.location)
    refuse_declared(source, raw_config(source))
    if source.is_local:
        refuse_stored(source, folder)
    config = load_config(source, random_weights=False, trust_remote_code=trust_remote_code)
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    module, report = _from_pretrained(source, auto_class(config, source), options, placed)
    if not source.is_local:
        refuse_stored(source, _cached_folder(source))
    _check_weights_fit(source, module, report)
    if placed is None:
        module = module.to(device)
    else:
        _placing(source, spread_loaded, module, placed)
    return module, files_digest(folder) if source.is_local else _weights_digest(module)


def _from_pretrained(
    source: ModelSource, auto: Any, options: dict[str, Any], placed: DeviceMap | None
) -> tuple[Any, Mapping[str, Any]]:
    """Return the model of a checkpoint, and what transformers reports about its weights."""
    from safetensors import SafetensorError

    folder = None if placed is None or placed.folder is None else own_folder(placed.folder)
    if placed is not None:
        options["device_map"] = placed.on_loading()
        options["offload_folder"] = None if folder is None else folder.name
    try:
        module, report = auto.from_pretrained(
            source.location,
            use_safetensors=True,
            revision=source.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        problem = cannot_load(source, "weights", error)
        if placed is not None and folder is None:
            raise ModelError(
                f"{problem}; if transformers converts them while it loads, give a folder for those "
                "that no memory holds with --aq-offload-dir"
            ) from error
        raise problem from error
    if folder is not None:
        weakref.finalize(module, folder.cleanup)
    return module, report


def _cached_folder(source: ModelSource) -> Path:
    """Return the folder of the hub's cache that holds the files of a checkpoint once loaded."""
    from transformers.utils import cached_file

    return Path(cached_file(source.location, "config.json", revision=source.revision)).parent


def _check_weights_fit(source: ModelSource, module: Any, report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not those of the model.

    transformers would leave a missing weight at its random value, and an unexpected one out. It
    reports no unexpected weight that the model's class ignores on purpose.
    """
    mismatched = sorted(str(key[0]) for key in report["mismatched_keys"])
    if mismatched:
        raise ModelError(
            f"model {source.name}: {len(mismatched)} weights differ in shape from the config, such "
            f"as {mismatched[0]}"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model {source.name}: the checkpoint lacks {len(missing)} weights of "
            f"{type(module).__name__}, such as {missing[0]}; they would be random"
        )
    unexpected = sorted(k for k in report["unexpected_keys"] if not _COMPUTED.search(k))
    if unexpected:
        raise ModelError(
            f"model {source.name}: the checkpoint has {len(unexpected)} weights that "
            f"{type(module).__name__} does not have: {first_few(unexpected, 3)}; they would "
            "be left out: use a checkpoint of this architecture"
        )


def _build_random(
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    trust_remote_code: bool,
    placed: DeviceMap | None,
) -> tuple[Any, str]:
    """Return a model with seeded random weights, and a digest of what determines them."""
    module = empty_model(source, True, trust_remote_code, dtype)
    weights = RandomWeights(module, seed=seed, device=device)
    if placed is None:
        fill_random(module, weights, device)
    else:
        _placing(source, spread_random, module, weights, placed)
    config = module.config.to_json_string()
    described = f"random by module {seed} {device.type} {dtype} {config}"
    return module, hashlib.sha256(described.encode()).hexdigest()


def _placing(source: ModelSource, spread: Callable[..., None], *arguments: Any) -> None:
    """Spread a model.

    Raises:
        ModelError: the device map leaves a layer without weights.
    """
    try:
        spread(*arguments)
    except ValueError as error:
        raise ModelError(
            f"model {source.name}: its device map leaves a layer without weights: {in_words(error)}"
        ) from error


def _load_tokenizer(source: ModelSource, is_random: bool, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    is_embedded = is_random and not source.is_local
    location = str(EMBEDDED_TOKENIZER) if is_embedded else source.location
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location, trust_remote_code=trust_remote_code, revision=source.revision
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise cannot_load(source, "tokenizer", error) from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"model {source.name}: {source.public_id} has no tokenizer; save one in the folder of "
            "the weights"
        )
    return tokenizer


def _weights_digest(module: Any) -> str:
    """Hash the loaded weights of a hub checkpoint: its files lie in a cache of another layout."""
    digest = hashlib.sha256()
    for name in sorted(module.state_dict()):
        owner, _, own = name.rpartition(".")
        child = module.get_submodule(owner)
        with held(child):
            tensor = getattr(child, own).detach().contiguous()
            digest.update(name.encode())
            digest.update(tensor.view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
