"""For every test: workers that share the cores must not each take all of them."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported


@pytest.fixture(scope="module")
def one_thread():
    """Run torch on one thread: the sums of a float reduction depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
