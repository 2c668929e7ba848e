"""What a measurement ran on."""

import getpass
import platform
import socket

import pytest
import torch
from pytest_autoquant.manifests.fingerprint import HARNESS_VERSION
from pytest_autoquant.scoring.machine.environment import environment_record, memory_record


@pytest.mark.parametrize(
    ("record_host", "host", "user"),
    [(False, None, None), (True, socket.gethostname(), getpass.getuser())],
)
def test_host_and_user_are_recorded_only_on_request(record_host, host, user):
    record = environment_record(torch.device("cpu"), record_host=record_host)
    assert (record.host, record.user) == (host, user)
    assert (record.device, record.device_name) == ("cpu", "CPU")
    assert (record.harness, record.torch) == (HARNESS_VERSION, torch.__version__)
    assert record.python == platform.python_version()


def test_peak_memory_of_the_process_is_in_bytes():
    record = memory_record(123)
    assert record.peak_cuda_bytes == 123
    assert 50 * 2**20 < record.peak_rss_bytes < 2**40  # torch alone takes more
