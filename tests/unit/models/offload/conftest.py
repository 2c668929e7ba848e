"""The embedded model with little memory allowed."""

import pytest
import torch
from builders import load_tiny
from pytest_autoquant.models.offload.device_map import Offload
from pytest_autoquant.models.offload.max_memory import MaxMemory

#: The embedding, the largest layer of the embedded model in fp32.
ONE_LAYER = 4 * 2048 * 128


@pytest.fixture(scope="session")
def load():
    """Load the embedded model within some bytes; its weights beyond them are on disk."""

    def loaded(most=ONE_LAYER, *, folder=None, name="tiny-qwen3-vl", **options):
        offload = Offload(max_memory=MaxMemory(each=most), folder=folder)
        return load_tiny(name, offload=offload, device=torch.device("cpu"), **options)

    return loaded
