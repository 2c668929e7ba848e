"""The tensors of the vision towers, from the numbers of ``vision_config``.

vLLM could load their linears quantized; schemes never quantize them (rule ``vision``).
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_autoquant.export.vllm_rules.architecture.config_numbers import (
    MOST_REPEATED,
    ConfigNumbers,
)
from pytest_autoquant.export.vllm_rules.architecture.parameter import Parameter, plain, with_bias


def qwen3_vl_vision(config: ConfigNumbers, prefix: str) -> Iterator[Parameter]:
    """Yield the vision tower of Qwen3-VL.

    Source: ``Qwen3_VisionTransformer`` in vLLM 0.32.0's ``qwen3_vl.py``.

    Raises:
        ExportError: a number is missing or malformed.
    """
    hidden, merged = config.number("hidden_size"), _merged(config)
    mlp = config.number("intermediate_size")
    yield from with_bias(f"{prefix}patch_embed.proj", hidden, *_patch(config))
    yield plain(f"{prefix}pos_embed.weight", config.number("num_position_embeddings"), hidden)
    for index in range(config.number("depth", most=MOST_REPEATED)):
        block = f"{prefix}blocks.{index}"
        yield from with_bias(f"{block}.norm1", hidden)
        yield from with_bias(f"{block}.norm2", hidden)
        yield from _attention(block, hidden)
        yield from with_bias(f"{block}.mlp.linear_fc1", mlp, hidden)
        yield from with_bias(f"{block}.mlp.linear_fc2", hidden, mlp)
    yield from _merger(config, f"{prefix}merger", hidden)
    for index in range(len(config.numbers("deepstack_visual_indexes"))):
        yield from _merger(config, f"{prefix}deepstack_merger_list.{index}", merged)


def qwen2_5_vl_vision(config: ConfigNumbers, prefix: str) -> Iterator[Parameter]:
    """Yield the vision tower of Qwen2.5-VL.

    Source: ``Qwen2_5_VisionTransformer`` in vLLM 0.32.0's ``qwen2_5_vl.py``.

    Raises:
        ExportError: a number is missing or malformed.
    """
    hidden, merged = config.number("hidden_size"), _merged(config)
    mlp = config.number("intermediate_size")
    yield plain(f"{prefix}patch_embed.proj.weight", hidden, *_patch(config))
    for index in range(config.number("depth", most=MOST_REPEATED)):
        block = f"{prefix}blocks.{index}"
        yield plain(f"{block}.norm1.weight", hidden)
        yield plain(f"{block}.norm2.weight", hidden)
        yield from _attention(block, hidden)
        yield from with_bias(f"{block}.mlp.gate_proj", mlp, hidden)
        yield from with_bias(f"{block}.mlp.up_proj", mlp, hidden)
        yield from with_bias(f"{block}.mlp.down_proj", hidden, mlp)
    yield plain(f"{prefix}merger.ln_q.weight", hidden)
    yield from with_bias(f"{prefix}merger.mlp.0", merged, merged)
    yield from with_bias(f"{prefix}merger.mlp.2", config.number("out_hidden_size"), merged)


def _attention(block: str, hidden: int) -> Iterator[Parameter]:
    yield from with_bias(f"{block}.attn.qkv", 3 * hidden, hidden)
    yield from with_bias(f"{block}.attn.proj", hidden, hidden)


def _merger(config: ConfigNumbers, name: str, normed: int) -> Iterator[Parameter]:
    merged = _merged(config)
    yield from with_bias(f"{name}.norm", normed)
    yield from with_bias(f"{name}.linear_fc1", merged, merged)
    yield from with_bias(f"{name}.linear_fc2", config.number("out_hidden_size"), merged)


def _merged(config: ConfigNumbers) -> int:
    """Return the width of a square of patches that become one token."""
    return config.number("hidden_size") * config.number("spatial_merge_size", default=2) ** 2


def _patch(config: ConfigNumbers) -> tuple[int, int, int, int]:
    """Return channels, frames, height and width of what a patch is made of."""
    size = config.number("patch_size")
    channels = config.number("in_channels", "in_chans", default=3)
    return channels, config.number("temporal_patch_size", default=2), size, size
