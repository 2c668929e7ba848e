"""A small checkpoint to damage."""

import pytest
import torch


@pytest.fixture(scope="module")
def qwen3():
    """A causal language model of one layer, without a vision tower."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=2048,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


@pytest.fixture
def checkpoint(qwen3, tiny, tmp_path):
    """A folder with ``qwen3`` and a tokenizer."""
    folder = tmp_path / "mine"
    qwen3.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder
