"""What the doctor finds: ranges, compilers, GPUs, extensions, and which quantizers run."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_autoquant
from packaging.requirements import Requirement
from pytest_autoquant.cli import doctor
from pytest_autoquant.cli.doctor import Check, can_run, render_checks

GIB = 2**30
COMMAND_LINE_NEEDS = ("tabulate", "packaging", "PyYAML")
FIVE = ("wfp8_afp16", "wint8_afp16", "wint4_afp16", "wfp16_afp8", "wfp16_aint8")


def by_name(checks):
    named = {check.name: check for check in checks}
    assert len(named) == len(checks)
    return named


@pytest.fixture
def said():
    return []


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make ``importlib.metadata`` see a distribution."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(name, version):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )

    return add


def test_versions_are_held_against_what_the_package_declares(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.7")
    checks = by_name(doctor.versions())
    assert list(checks)[:5] == [
        *("python", "pytest-autoquant", "pytest", "pytest-xdist", "pytest-benchmark"),
    ]
    assert {"torch", "transformers", "nvidia-modelopt"} <= checks.keys()
    assert not {"ruff", "mypy", "hypothesis"} & checks.keys()
    assert checks["python"].found == "3.11.7, within <3.14,>=3.10"
    assert checks["pytest"].found == f"{pytest.__version__}, within >=8"
    assert {check.status for check in checks.values()} == {"ok"}


def test_a_python_outside_the_range_is_told_with_the_range(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.21")
    assert doctor.versions()[0] == Check(
        name="python",
        status="missing",
        found="3.9.21, outside <3.14,>=3.10",
        advice="use Python <3.14,>=3.10 and install pytest-autoquant there",
    )


def test_ranges_are_unknown_where_this_package_is_not_installed(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    python, own = doctor.versions()
    assert (python.name, python.status) == ("python", "ok")
    assert (own.name, own.status) == ("pytest-autoquant", "missing")
    assert own.advice.startswith("python -m pip install -e .")


def test_one_command_gets_what_is_missing_and_what_is_out_of_range(install):
    install("aq_old", "4.5")
    install("aq_right", "4.57.1")
    install("aq_nightly", "2.14.0.dev20260101+cu130")
    names = ("aq-old>=4.57,<5", "aq-right>=4.57,<5", "aq-absent==0.47.*", "aq-nightly>=2.8")
    checks = by_name(doctor.packages([Requirement(name) for name in names]))
    command = "python -m pip install 'aq-old<5,>=4.57' 'aq-absent==0.47.*'"
    assert checks == {
        "aq-old": Check(
            name="aq-old", status="missing", found="4.5, outside <5,>=4.57", advice=command
        ),
        "aq-right": Check(name="aq-right", status="ok", found="4.57.1, within <5,>=4.57"),
        "aq-absent": Check(
            name="aq-absent",
            status="missing",
            found="not installed; wanted ==0.47.*",
            advice=command,
        ),
        "aq-nightly": Check(
            name="aq-nightly", status="ok", found="2.14.0.dev20260101+cu130, within >=2.8"
        ),
    }


def test_a_package_without_a_range_may_have_any_version(install):
    install("aq_right", "0.0.1")
    right, absent = doctor.packages([Requirement("aq-right"), Requirement("aq-absent")])
    assert (right.status, right.found) == ("ok", "0.0.1")
    assert (absent.found, absent.advice) == (
        "not installed; wanted any version",
        "python -m pip install aq-absent",
    )


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Write programs into a folder that is all of PATH, or below it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def write(name, output, status=0):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{output}'\nexit {status}\n")
        path.chmod(0o755)

    return write


def test_compilers_are_found_where_torch_looks_with_their_versions(program, tmp_path, monkeypatch):
    program("clang++", "Some clang version 17.0.6 (of something)")
    program("bin/nvcc", "Copyright (c) 2005-2025\nCuda compilation tools, release 13.0, V13.0.88")
    program("ninja", "1.13.2.git")
    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert doctor.compilers() == (
        Check(name="c++", status="ok", found="17.0.6"),
        Check(name="nvcc", status="ok", found="13.0"),
        Check(name="ninja", status="ok", found="1.13.2"),
    )


def test_a_compiler_that_is_absent_or_broken_is_a_warning_with_advice(program):
    program("c++", "no such driver 1.2.3", status=1)
    checks = by_name(doctor.compilers())
    assert checks["c++"].status == checks["ninja"].status == "warning"
    assert checks["c++"].found.startswith("does not run: CalledProcessError")
    assert "name it in CXX" in checks["c++"].advice
    assert checks["ninja"].found == "not found"
    assert "python -m pip install ninja" in checks["ninja"].advice
    assert can_run([checks["c++"], checks["ninja"]])


@pytest.fixture
def cuda(monkeypatch):
    """A torch that sees a GPU, as far as asking about it goes."""
    # ModelOpt asks too when it is imported, and must be told the truth.
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
    """A torch that sees no GPU, and a ModelOpt that has loaded no extension."""
    import torch
    from modelopt.torch.quantization import extensions

    for name in ("get_cuda_ext", "get_cuda_ext_fp8", "get_cuda_ext_mx"):
        monkeypatch.delattr(getattr(extensions, name), "extension", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_every_gpu_is_named_with_memory_and_compute_capability(cuda):
    found = "NVIDIA H200, 140.0 GiB, compute capability 9.0"
    assert doctor.gpus() == (
        Check(name="GPU 0", status="ok", found=found),
        Check(name="GPU 1", status="ok", found=found),
    )


def test_no_gpu_is_a_warning_that_tells_what_torch_says(monkeypatch):
    import torch

    def warn():
        warnings.warn("driver\ntoo old", stacklevel=1)
        return False

    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", warn)
    (check,) = doctor.gpus()
    assert check.status == "warning"
    assert check.found == "torch 2.13.0 sees no CUDA device; driver too old"
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.gpus()[0].found == "torch 2.13.0 is built without CUDA"


def test_every_extension_is_loaded_and_a_failure_is_told_in_modelopts_words(
    monkeypatch, cuda, said
):
    from modelopt.torch.quantization import extensions

    def fail(raise_if_failed):
        print("c++ -c ...")
        raise RuntimeError(f"Error building\n extension {raise_if_failed}" + "." * 1000)

    monkeypatch.setattr(extensions, "get_cuda_ext", lambda raise_if_failed: extensions)
    monkeypatch.setattr(extensions, "get_cuda_ext_fp8", fail)
    monkeypatch.setattr(extensions, "get_cuda_ext_mx", lambda raise_if_failed: extensions)
    checks = by_name(doctor.extensions(said.append))
    assert {name: check.status for name, check in checks.items()} == {
        "cuda_ext": "ok",
        "cuda_ext_fp8": "warning",
        "cuda_ext_mx": "ok",
    }
    assert checks["cuda_ext"].found == "loaded in 0.0 s"
    assert checks["cuda_ext_fp8"].found.startswith("RuntimeError: Error building extension True.")
    assert len(checks["cuda_ext_fp8"].found) < 400
    assert checks["cuda_ext_fp8"].advice == "needs c++, ninja and nvcc 13.0; then run this again"
    assert said == [
        f"loading ModelOpt's {name}; its first build takes about a minute" for name in checks
    ]


def test_without_cuda_no_extension_is_built_and_none_announced(no_cuda, said):
    checks = doctor.extensions(said.append)
    assert len(checks) == 3
    assert {(check.status, check.advice) for check in checks} == {("warning", "")}
    assert all("CUDA is not available" in check.found for check in checks)
    assert said == []


def test_tritons_nvfp4_kernel_is_looked_for_in_modelopt(monkeypatch, cuda, install):
    from modelopt.torch.kernels.quantization import gemm

    monkeypatch.delattr(gemm, "fp4_fake_quant_block", raising=False)
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    assert doctor.triton_kernels() == (
        Check(
            name="NVFP4 in Triton",
            status="warning",
            found="triton is not installed",
            advice="python -m pip install triton",
        ),
    )
    monkeypatch.setattr(doctor, "_installed", {"triton": "3.5.0"}.get)
    (old_card,) = doctor.triton_kernels()
    assert old_card.status == "warning"
    assert old_card.found == "triton 3.5.0; ModelOpt has no kernel for compute capability 7.5"
    monkeypatch.setattr(gemm, "fp4_fake_quant_block", print, raising=False)
    assert doctor.triton_kernels() == (
        Check(name="NVFP4 in Triton", status="ok", found="triton 3.5.0"),
    )


def test_quantizers_are_run_and_what_needs_cuda_limits_a_cpu(no_cuda, said):
    checks = by_name(doctor.quantizers(said.append))
    assert said == ["running ModelOpt's quantizers on cpu"]
    running = [name for name, check in checks.items() if check.status == "ok"]
    assert running == [f"{name} on cpu" for name in FIVE]
    assert {checks[name].found for name in running} == {"runs"}
    (fp4, nvfp4) = (checks[f"w{name}_afp16 on cpu"] for name in ("fp4", "nvfp4"))
    assert fp4.status == nvfp4.status == "warning"
    assert fp4.found.startswith("needs-cuda: RuntimeError: ")
    assert nvfp4.found.startswith("needs-cuda: AssertionError: ")


def test_autoquant_cannot_run_where_no_quantizer_does(no_cuda, monkeypatch, said):
    from pytest_autoquant.modelopt_support.probe import Prober
    from pytest_autoquant.modelopt_support.status import Status, Support

    refusal = Support(status=Status.UNSUPPORTED, reason="RuntimeError: no kernel image")
    monkeypatch.setattr(Prober, "support", lambda self, config: refusal)
    checks = doctor.quantizers(said.append)
    assert len(checks) == 7
    assert {(check.status, check.found) for check in checks} == {
        ("missing", "unsupported: RuntimeError: no kernel image")
    }
    assert not can_run(checks)


@pytest.fixture
def after_imports(monkeypatch):
    """Look at nothing but what stages find."""
    monkeypatch.setattr(doctor, "versions", tuple)
    monkeypatch.setattr(doctor, "compilers", tuple)

    def examine(*stages):
        monkeypatch.setattr(doctor, "_STAGES", stages)
        return doctor.examine(print)

    return examine


def test_what_needs_a_module_that_cannot_be_imported_is_not_looked_at(after_imports, tmp_path):
    seen = Check(name="GPU 0", status="ok", found="here")
    assert after_imports(
        doctor._Stage(module="json", look=lambda announce: (seen,)),
        doctor._Stage(module="no_such_module", look=pytest.fail),
        doctor._Stage(module="json", look=pytest.fail),
    ) == (
        seen,
        Check(
            name="import no_such_module",
            status="missing",
            found="ModuleNotFoundError: No module named 'no_such_module'",
            advice="until it can be imported, nothing that needs it can be looked at",
        ),
    )


def test_a_look_that_raises_is_a_finding_and_the_next_one_goes_on(after_imports):
    seen = Check(name="wint8_afp16 on cuda", status="ok", found="runs")

    def broken_driver(announce):
        raise RuntimeError("CUDA error: busy")

    assert after_imports(
        doctor._Stage(module="json", look=broken_driver),
        doctor._Stage(module="json", look=lambda announce: (seen,)),
    ) == (
        Check(name="use json", status="missing", found="RuntimeError: CUDA error: busy"),
        seen,
    )


def test_the_table_is_followed_by_each_advice_once_and_the_verdict():
    command = "python -m pip install 'torch>=2.8' 'transformers<5.15,>=4.57' " + "x" * 100
    checks = (
        Check(name="python", status="ok", found="3.10"),
        Check(name="torch", status="missing", found="not installed", advice=command),
        Check(name="transformers", status="missing", found="4.50.0", advice=command),
        Check(name="ninja", status="warning", found="not found", advice="install it"),
    )
    assert render_checks(checks).splitlines() == [
        "check         status    found",
        "------------  --------  -------------",
        "python        ok        3.10",
        "torch         missing   not installed",
        "transformers  missing   4.50.0",
        "ninja         warning   not found",
        "",
        "torch, transformers:",
        f"    {command}",
        "ninja:",
        "    install it",
        "",
        "AutoQuant cannot run here: see what is missing",
    ]
    assert render_checks(checks[:1]).splitlines()[2:] == [
        "python   ok        3.10",
        "",
        "AutoQuant can run here",
    ]
    assert (can_run(checks), can_run(checks[:1]), can_run(checks[3:])) == (False, True, True)


@pytest.fixture
def bare(tmp_path):
    """A Python that has this package, what its command line imports, and nothing else."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "pytest_autoquant").symlink_to(Path(pytest_autoquant.__file__).parent)
    for name in COMMAND_LINE_NEEDS:
        distribution = importlib.metadata.distribution(name)
        for part in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            (site / part).symlink_to(distribution.locate_file(part))
    own = site / "pytest_autoquant-0.1.0.dist-info"
    own.mkdir()
    # A checkout may hold an older egg-info beside what is installed.
    found = importlib.metadata.distributions(name="pytest-autoquant")
    (own / "METADATA").write_text(next(filter(None, (d.read_text("METADATA") for d in found))))

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-S", "-P", "-m", "pytest_autoquant.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_where_nothing_is_installed_the_doctor_says_how_to_get_all_of_it(bare):
    done = bare("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if len(line.split()) > 2}
    assert rows["torch"] == ["missing", "not installed; wanted >=2.8"]
    assert rows["transformers"] == ["missing", "not installed; wanted <5.15,>=5.0"]
    assert rows["nvidia-modelopt"] == ["missing", "not installed; wanted ==0.47.*"]
    assert rows["pytest-autoquant"][0] == "ok"
    assert {rows[name][0] for name in COMMAND_LINE_NEEDS} == {"ok"}
    (command,) = (line for line in lines if line.startswith("python -m pip install"))
    wanted = command.removeprefix("python -m pip install ").split()
    assert {"'torch>=2.8'", "'transformers<5.15,>=5.0'", "'nvidia-modelopt==0.47.*'"} <= {*wanted}
    assert not [each for each in wanted for name in COMMAND_LINE_NEEDS if name in each]
    assert "ModuleNotFoundError: No module named 'torch'" in done.stdout
    assert lines[-1] == "AutoQuant cannot run here: see what is missing"
