"""Devices and dtypes by name."""

import pytest
import torch
from pytest_autoquant.errors import UsageError
from pytest_autoquant.models.device import peak_cuda_bytes, resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["", "tpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:0\n"])
def test_unknown_device_is_refused(name):
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    assert str(caught.value) == f"unknown device {name!r}; use auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize(
    ("name", "num_devices", "is_available"),
    [
        ("cuda", 0, False),
        ("cuda", 1, True),
        ("cuda:1", 1, False),
        ("cuda:999", 8, False),
        ("cuda:7", 8, True),
    ],
)
def test_cuda_device_must_be_visible_to_torch(monkeypatch, name, num_devices, is_available):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    if is_available:
        assert resolve_device(name) == torch.device(name)
        return
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    assert str(caught.value).startswith(
        f"device {name!r} is not available: torch sees {num_devices} CUDA devices; use --aq-device"
    )


@pytest.mark.parametrize(("has_cuda", "expected"), [(True, CUDA), (False, CPU)])
def test_auto_device_is_cuda_if_available(monkeypatch, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert resolve_device("auto") == expected


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CPU, torch.float32),
        ("auto", CUDA, torch.bfloat16),
        ("fp32", CUDA, torch.float32),
        ("bf16", CPU, torch.bfloat16),
        ("fp16", CUDA, torch.float16),
    ],
)
def test_dtype(name, device, expected):
    assert resolve_dtype(name, device) is expected


def test_unknown_dtype_is_refused():
    with pytest.raises(UsageError, match=r"unknown dtype 'fp8'; use auto, fp32, bf16, fp16"):
        resolve_dtype("fp8", CPU)


def test_a_cpu_has_no_peak_of_cuda_memory():
    assert peak_cuda_bytes(CPU) is None
