"""The doctor in this environment, in a base install, and with a torch that cannot be imported."""

import os
import re

import pytest
from pytest_autoquant.cli import doctor
from pytest_autoquant.cli.doctor.check import Check


@pytest.mark.slow
def test_this_environment_can_run(aq_harness):
    # No GPU: where there is one, its extensions would be built.
    done = aq_harness("doctor", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0
    assert re.search(r"^nvidia-modelopt +ok +0\.47\.", done.stdout, re.MULTILINE)
    assert re.search(r"^wint8_afp16 on cpu +ok +runs$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\nAutoQuant can run on this machine\n")
    assert done.stderr.splitlines() == [
        "aq-harness: running ModelOpt's quantizers on cpu",
        "imported ['modelopt', 'torch', 'transformers']",
    ]


def test_torch_that_cannot_be_imported_is_missing(aq_harness, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = aq_harness("doctor", environment={"PYTHONPATH": paths})
    assert done.returncode == 1
    assert re.search(
        r"^torch and ModelOpt +missing +ImportError: libcudart.so.13: cannot open$",
        done.stdout,
        re.MULTILINE,
    )
    assert done.stdout.endswith("\nAutoQuant cannot run on this machine\n")


def test_checks_before_an_error_are_kept(monkeypatch):
    gpu = Check(name="GPU 0", status="ok", found="NVIDIA H200")

    def fail_after_the_gpu(announce):
        yield gpu
        raise RuntimeError("CUDA error: busy")

    monkeypatch.setattr(doctor, "check_measuring", fail_after_the_gpu)
    assert doctor.examine(print)[-2:] == (
        gpu,
        Check(name="torch and ModelOpt", status="missing", found="RuntimeError: CUDA error: busy"),
    )


def test_base_install_is_told_the_command_that_completes_it(base_install):
    done = base_install("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if len(line.split()) > 2}
    assert rows["torch"] == ["missing", "not installed; supported: >=2.8"]
    assert rows["transformers"] == ["missing", "not installed; supported: <5.15,>=5.0"]
    assert rows["nvidia-modelopt"] == ["missing", "not installed; supported: ==0.47.*"]
    assert {rows[name][0] for name in ("pytest-autoquant", "pytest", "pydantic", "numpy")} == {"ok"}
    (command,) = (line for line in lines if line.startswith("python -m pip install"))
    missing = command.removeprefix("python -m pip install ").split()
    assert {"'torch>=2.8'", "'transformers<5.15,>=5.0'", "'nvidia-modelopt==0.47.*'"} <= {*missing}
    assert not any("pydantic" in requirement for requirement in missing)
    assert lines[-1] == "AutoQuant cannot run on this machine"
