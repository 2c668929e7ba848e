"""A small mixture of experts: Qwen3-VL with two layers of five fused experts, two per token."""

import pytest
import torch
from builders import load_tiny, save_mixture


@pytest.fixture(scope="session")
def mixture(tmp_path_factory):
    """The model with random weights, in fp32 on the CPU; no token reaches expert 4 of layer 1.

    Of its router's logits, two pairs are each other's negatives and the last is zero: of each pair
    one is above zero.
    """
    folder = save_mixture(tmp_path_factory.mktemp("mixture"), layers=2, experts=5)
    model = load_tiny(str(folder), random_seed=0)
    router = model.module.get_submodule("model.language_model.layers.1.mlp.gate").weight
    with torch.no_grad():
        router[2:4] = -router[:2]
        router[4] = 0
    return model
