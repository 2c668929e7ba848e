"""GPUs, extensions and quantizers. Without a GPU, torch's answers about one are replaced."""

import importlib.metadata
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
from pytest_autoquant.cli.doctor import measuring
from pytest_autoquant.cli.doctor.check import Check, can_run

GIB = 2**30
CPU_PAIRS = ("wfp8_afp16", "wint8_afp16", "wint4_afp16", "wfp16_afp8", "wfp16_aint8")


@pytest.fixture
def cuda(monkeypatch):
    """A torch that reports two GPUs."""
    # ModelOpt also asks when it is imported, and must get the true answer.
    import modelopt.torch.quantization  # noqa: F401
    import torch

    card = SimpleNamespace(name="NVIDIA H200", total_memory=140 * GIB, major=9, minor=0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))


@pytest.fixture
def no_cuda(monkeypatch):
    """A torch that reports no GPU, and a ModelOpt that has loaded no extension."""
    import torch
    from modelopt.torch.quantization import extensions

    for name in ("get_cuda_ext", "get_cuda_ext_fp8", "get_cuda_ext_mx"):
        monkeypatch.delattr(getattr(extensions, name), "extension", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_every_gpu_is_listed_with_memory_and_compute_capability(cuda):
    found = "NVIDIA H200, 140.0 GiB, compute capability 9.0"
    assert measuring.check_gpus() == (
        Check(name="GPU 0", status="ok", found=found),
        Check(name="GPU 1", status="ok", found=found),
    )


def test_no_gpu_is_a_warning_with_torchs_own_warning(monkeypatch):
    import torch

    def warn():
        warnings.warn("driver\ntoo old", stacklevel=1)
        return False

    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", warn)
    (check,) = measuring.check_gpus()
    assert check.status == "warning"
    assert check.found == "torch 2.13.0 sees no CUDA device; driver too old"
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measuring.check_gpus()[0].found == "torch 2.13.0 is built without CUDA"


def test_extension_that_fails_to_build_is_a_warning_with_the_error(monkeypatch, cuda):
    from modelopt.torch.quantization import extensions

    def fail(raise_if_failed):
        print("c++ -c ...")
        raise RuntimeError(f"Error building\n extension {raise_if_failed}" + "." * 1000)

    monkeypatch.setattr(extensions, "get_cuda_ext", lambda raise_if_failed: extensions)
    monkeypatch.setattr(extensions, "get_cuda_ext_fp8", fail)
    monkeypatch.setattr(extensions, "get_cuda_ext_mx", lambda raise_if_failed: extensions)
    announced = []
    checks = {check.name: check for check in measuring.check_extensions(announced.append)}
    assert {name: check.status for name, check in checks.items()} == {
        "cuda_ext": "ok",
        "cuda_ext_fp8": "warning",
        "cuda_ext_mx": "ok",
    }
    assert checks["cuda_ext"].found == "loaded in 0.0 s"
    failed = checks["cuda_ext_fp8"]
    assert failed.found.startswith("RuntimeError: Error building extension True.")
    assert len(failed.found) < 400
    assert failed.advice == "install c++, ninja and nvcc 13.0, then run the doctor again"
    assert announced == [
        f"loading ModelOpt's {name}; its first build takes about a minute" for name in checks
    ]


def test_without_cuda_no_extension_is_built(no_cuda):
    announced = []
    checks = measuring.check_extensions(announced.append)
    assert len(checks) == 3
    assert {(check.status, check.advice) for check in checks} == {("warning", "")}
    assert all("CUDA is not available" in check.found for check in checks)
    assert announced == []


def version_of(versions, name):
    """Answer as ``importlib.metadata.version`` where only these distributions are installed."""
    try:
        return versions[name]
    except KeyError:
        raise importlib.metadata.PackageNotFoundError(name) from None


@pytest.mark.parametrize(
    ("triton", "has_kernel", "status", "found", "advice"),
    [
        (None, False, "warning", "is not installed", "python -m pip install triton"),
        ("3.5", False, "warning", "3.5; ModelOpt has no kernel for compute capability 7.5", ""),
        ("3.5", True, "ok", "3.5", ""),
    ],
)
def test_nvfp4_kernel_is_looked_up_in_modelopt(
    triton, has_kernel, status, found, advice, monkeypatch, cuda
):
    from modelopt.torch.kernels.quantization import gemm

    monkeypatch.delattr(gemm, "fp4_fake_quant_block", raising=False)
    if has_kernel:
        monkeypatch.setattr(gemm, "fp4_fake_quant_block", print, raising=False)
    versions = {"triton": triton} if triton else {}
    monkeypatch.setattr(importlib.metadata, "version", partial(version_of, versions))
    assert measuring.check_nvfp4_kernel() == Check(
        name="NVFP4 in Triton", status=status, found=f"triton {found}", advice=advice
    )


def test_pairs_that_need_cuda_are_warnings_on_a_cpu(no_cuda):
    announced = []
    checks = {check.name: check for check in measuring.check_quantizers(announced.append)}
    assert announced == ["running ModelOpt's quantizers on cpu"]
    running = {name: check.found for name, check in checks.items() if check.status == "ok"}
    assert running == {f"{name} on cpu": "runs" for name in CPU_PAIRS}
    fp4, nvfp4 = (checks[f"w{name}_afp16 on cpu"] for name in ("fp4", "nvfp4"))
    assert fp4.status == nvfp4.status == "warning"
    assert fp4.found.startswith("needs-cuda: RuntimeError: ")
    assert nvfp4.found.startswith("needs-cuda: AssertionError: ")


def test_every_pair_is_missing_if_none_runs(no_cuda, monkeypatch):
    from pytest_autoquant.modelopt_support.probe import Prober
    from pytest_autoquant.modelopt_support.status import Status, Support

    refusal = Support(status=Status.UNSUPPORTED, reason="RuntimeError: no kernel image")
    monkeypatch.setattr(Prober, "support", lambda self, config: refusal)
    checks = measuring.check_quantizers(print)
    assert len(checks) == 7
    assert {(check.status, check.found) for check in checks} == {
        ("missing", "unsupported: RuntimeError: no kernel image")
    }
    assert not can_run(checks)
