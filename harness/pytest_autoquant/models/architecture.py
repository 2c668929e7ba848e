"""The transformers config of a model, and the class that it is loaded with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pytest_autoquant.errors import ModelError
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.text import in_words


def load_config(source: ModelSource, *, random_weights: bool, trust_remote_code: bool) -> Any:
    """Return the model's transformers config.

    Args:
        random_weights: read the config file that the registry ships for the model, if there is one.

    Raises:
        ModelError: transformers cannot load the config.
    """
    from transformers import AutoConfig

    shipped = source.architecture if random_weights else None
    location = source.location if shipped is None else str(shipped)
    try:
        return AutoConfig.from_pretrained(
            location, trust_remote_code=trust_remote_code, revision=source.revision
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise cannot_load(source, "config", error) from error


def raw_config(source: ModelSource) -> Mapping[str, Any]:
    """Return what a checkpoint's ``config.json`` holds, also keys that its config class drops.

    transformers adds the commit of a hub checkpoint, as ``_commit_hash``.

    Raises:
        ModelError: transformers cannot read it.
    """
    from transformers import PreTrainedConfig

    try:
        found: Mapping[str, Any] = PreTrainedConfig.get_config_dict(
            source.location, revision=source.revision
        )[0]
    except (OSError, ValueError) as error:
        raise cannot_load(source, "config", error) from error
    return found


def auto_class(config: Any, source: ModelSource) -> Any:
    """Return the transformers Auto class that maps the config to the checkpoint's own class.

    Raises:
        ModelError: the architecture is neither an image-text nor a causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    architecture = (getattr(config, "architectures", None) or [None])[0]
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        mapped = auto._model_mapping.get(type(config), None)
        if mapped is not None and architecture in (None, mapped.__name__):
            return auto
        if hasattr(config, "auto_map") and auto.__name__ in config.auto_map:
            return auto
    raise ModelError(
        f"model {source.name}: architecture {architecture or type(config).__name__} is neither an "
        "image-text nor a causal language model; use a checkpoint of one of these"
    )


def build_model(
    config: Any, source: ModelSource, *, trust_remote_code: bool, **options: Any
) -> Any:
    """Return the model of a config, with the weights that its class initializes.

    A checkpoint's own code is read at the source's revision, as is all that comes from the hub.

    Args:
        options: what else transformers' ``from_config`` takes, such as ``dtype``.

    Raises:
        ModelError: see ``auto_class``.
    """
    auto = auto_class(config, source)
    if _imports_code(auto, config, source):
        options["code_revision"] = source.revision
    return auto.from_config(config, trust_remote_code=trust_remote_code, **options)


def empty_model(
    source: ModelSource, is_random: bool, trust_remote_code: bool, dtype: torch.dtype
) -> Any:
    """Return a model with its parameters on the meta device, and its buffers as its class has them.

    Args:
        is_random: read the config file that the registry ships for the model, if there is one.

    Raises:
        ModelError: the config cannot be loaded or is of another kind of model.
    """
    from accelerate import init_empty_weights

    config = load_config(source, random_weights=is_random, trust_remote_code=trust_remote_code)
    with init_empty_weights(include_buffers=False):
        module = build_model(config, source, trust_remote_code=trust_remote_code, dtype=dtype)
    module.tie_weights()
    return module


def _imports_code(auto: Any, config: Any, source: ModelSource) -> bool:
    """Whether the class is still to be imported from the source's own repository.

    transformers registers an imported class; for one that it knows, it hands ``code_revision`` on
    to the class, which refuses it.
    """
    mapped = auto._model_mapping.get(type(config), None)
    is_known = mapped is not None and not mapped.__module__.startswith("transformers.")
    reference = (getattr(config, "auto_map", None) or {}).get(auto.__name__)
    if source.is_local or is_known or reference is None:
        return False
    return str(reference).rpartition("--")[0] in ("", source.location)


def cannot_load(source: ModelSource, part: str, error: BaseException) -> ModelError:
    """Build the error for a part of a model that a library could not load."""
    revision = "" if source.revision is None else f" at revision {source.revision}"
    return ModelError(
        f"model {source.name}: its {part} cannot be loaded from {source.public_id}{revision}: "
        f"{in_words(error)}"
    )
