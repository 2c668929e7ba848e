"""A model on disk whose widths no block size of 64 or 128 divides."""

import shutil
from pathlib import Path

import pytest_autoquant
import torch

EMBEDDED = Path(pytest_autoquant.__file__).parent / "models" / "data" / "tiny-qwen3-vl"
HIDDEN, INTERMEDIATE, HEADS = 96, 200, 64


def save_odd_model(folder):
    """Save a causal model of one layer, 96, 64 and 200 wide, with the embedded tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=HEADS // 2,
        vocab_size=8192,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)
    return folder
