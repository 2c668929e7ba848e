"""For every test: the same bits on every processor, and workers that share its cores."""

import os

import pytest

# MKL's products of one row differ in the last bit by how many rows there are, on processors with
# AVX-512; a value that rounds otherwise can be quantized otherwise. Strict AVX2 code has no such
# differences, so that tests compare divergences on all processors as closely.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

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
