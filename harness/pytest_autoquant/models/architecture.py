"""The transformers config of a model, and the class that it is loaded with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise cannot_load(source, "config", error) from error


def raw_config(source: ModelSource) -> Mapping[str, Any]:
    """Return what a checkpoint's ``config.json`` holds, also keys that its config class drops.

    Raises:
        ModelError: transformers cannot read it.
    """
    from transformers import PreTrainedConfig

    try:
        found: Mapping[str, Any] = PreTrainedConfig.get_config_dict(source.location)[0]
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


def cannot_load(source: ModelSource, part: str, error: BaseException) -> ModelError:
    """Build the error for a part of a model that a library could not load."""
    return ModelError(
        f"model {source.name}: its {part} cannot be loaded from {source.public_id}: "
        f"{in_words(error)}"
    )
