"""The programs that build ModelOpt's CUDA extensions."""

import pytest
from pytest_autoquant.cli.doctor.check import Check, can_run
from pytest_autoquant.cli.doctor.compilers import check_compilers


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Write programs into the only folder on PATH, or below it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def write(name, output, status=0):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{output}'\nexit {status}\n")
        path.chmod(0o755)

    return write


def test_compilers_are_found_where_torch_finds_them(program, tmp_path, monkeypatch):
    program("clang++", "Some clang version 17.0.6 (of something)")
    program("bin/nvcc", "Copyright (c) 2005-2025\nCuda compilation tools, release 13.0, V13.0.88")
    program("ninja", "1.13.2.git")
    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert check_compilers() == (
        Check(name="c++", status="ok", found="17.0.6"),
        Check(name="nvcc", status="ok", found="13.0"),
        Check(name="ninja", status="ok", found="1.13.2"),
    )


def test_missing_or_broken_compiler_is_a_warning_with_advice(program):
    program("c++", "no such driver 1.2.3", status=1)
    checks = {check.name: check for check in check_compilers()}
    assert checks["c++"].status == checks["ninja"].status == "warning"
    assert checks["c++"].found.startswith("does not run: CalledProcessError")
    assert checks["c++"].advice.endswith("put it on PATH, or name it in CXX")
    assert checks["ninja"].found == "not found"
    assert "python -m pip install ninja" in checks["ninja"].advice
    assert can_run([checks["c++"], checks["ninja"]])
