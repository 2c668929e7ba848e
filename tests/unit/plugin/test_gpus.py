"""Which GPUs a machine shows, without torch, and which of them a worker gets."""

import os

import pytest
from pytest_autoquant.plugin import gpus
from pytest_autoquant.plugin.gpus import VISIBLE, pin, visible_gpus


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """A machine whose ``/dev`` holds these names, and where CUDA is told nothing."""

    def machine(*names):
        for name in names:
            (tmp_path / name).touch()
        monkeypatch.setattr(gpus, "Path", lambda _: tmp_path)
        monkeypatch.delenv(VISIBLE, raising=False)

    return machine


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("0", ("0",)),
        ("2,0,1", ("2", "0", "1")),
        (" 1 , 3 ", ("1", "3")),
        ("", ()),
        (" ", ()),
        ("-1", ()),
        ("0,", ("0",)),
        ("GPU-8932f937-d72c,GPU-1f2e", ("GPU-8932f937-d72c", "GPU-1f2e")),
        ("MIG-GPU-8932f937/1/0", ("MIG-GPU-8932f937/1/0",)),
    ],
)
def test_the_gpus_are_those_that_cuda_is_told_of_in_its_order(monkeypatch, named, shown):
    monkeypatch.setenv(VISIBLE, named)
    assert visible_gpus() == shown


def test_cuda_shows_no_gpu_after_one_that_is_none(monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,-1,1")
    assert visible_gpus() == ("0",)


def test_where_cuda_is_told_nothing_the_gpus_are_the_machines_devices(devices):
    devices("nvidia0", "nvidia1", "nvidia5", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null")
    assert visible_gpus() == ("0", "1", "2")


def test_a_machine_without_devices_has_no_gpu(devices):
    devices("null", "nvidiactl")
    assert visible_gpus() == ()


def test_a_machine_without_a_device_folder_has_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "Path", lambda _: tmp_path / "away")
    monkeypatch.delenv(VISIBLE, raising=False)
    assert visible_gpus() == ()


def test_what_cuda_is_told_wins_over_the_machines_devices(devices, monkeypatch):
    devices("nvidia0", "nvidia1")
    monkeypatch.setenv(VISIBLE, "1")
    assert visible_gpus() == ("1",)


@pytest.mark.parametrize(
    ("index", "own"), [(0, "4"), (1, "GPU-b"), (2, "6"), (3, "4"), (7, "GPU-b")]
)
def test_workers_take_the_visible_gpus_in_turn(monkeypatch, index, own):
    monkeypatch.setenv(VISIBLE, "4,GPU-b,6")
    pin(index)
    assert os.environ[VISIBLE] == own
    assert visible_gpus() == (own,)


def test_a_worker_is_pinned_where_cuda_was_told_nothing(devices, monkeypatch):
    devices("nvidia0", "nvidia1")
    monkeypatch.setenv(VISIBLE, "kept for undoing")
    monkeypatch.delenv(VISIBLE)
    pin(1)
    assert os.environ[VISIBLE] == "1"


@pytest.mark.parametrize("named", ["7", "", "-1"])
def test_with_one_gpu_or_none_there_is_nothing_to_pin(monkeypatch, named):
    monkeypatch.setenv(VISIBLE, named)
    pin(3)
    assert os.environ[VISIBLE] == named


def test_without_any_device_cuda_is_told_nothing(devices):
    devices("null")
    pin(0)
    assert VISIBLE not in os.environ
