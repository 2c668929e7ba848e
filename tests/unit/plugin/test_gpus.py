"""Which GPUs a machine shows, without torch, and which of them a worker gets."""

import os

import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.plugin import gpus
from pytest_autoquant.plugin.gpus import (
    VISIBLE,
    pin,
    pin_share,
    refuse_too_many,
    visible_gpus,
)


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """Build a machine with these names in ``/dev`` and without ``CUDA_VISIBLE_DEVICES``."""

    def machine(*names, folder="dev"):
        (tmp_path / "dev").mkdir()
        for name in names:
            (tmp_path / "dev" / name).touch()
        monkeypatch.setattr(gpus, "Path", lambda _: tmp_path / folder)
        monkeypatch.setenv(VISIBLE, "restored after the test")
        monkeypatch.delenv(VISIBLE)

    return machine


@pytest.mark.parametrize(
    ("variable", "shown"),
    [
        ("0", ("0",)),
        ("2,0,1", ("2", "0", "1")),
        (" 1 , 3 ", ("1", "3")),
        ("", ()),
        (" ", ()),
        ("-1", ()),
        ("0,", ("0",)),
        ("0,-1,1", ("0",)),
        ("GPU-8932f937-d72c,GPU-1f2e", ("GPU-8932f937-d72c", "GPU-1f2e")),
        ("MIG-GPU-8932f937/1/0", ("MIG-GPU-8932f937/1/0",)),
    ],
)
def test_visible_gpus_are_those_of_the_environment_variable(devices, monkeypatch, variable, shown):
    devices("nvidia0", "nvidia1", "nvidia2", "nvidia3")
    monkeypatch.setenv(VISIBLE, variable)
    assert visible_gpus() == shown


@pytest.mark.parametrize(
    ("names", "folder", "shown"),
    [
        (("nvidia0", "nvidia1", "nvidia5", "nvidiactl", "nvidia-uvm"), "dev", ("0", "1", "2")),
        (("null", "nvidiactl"), "dev", ()),
        ((), "missing", ()),
    ],
)
def test_without_the_variable_visible_gpus_are_the_devices(devices, names, folder, shown):
    devices(*names, folder=folder)
    assert visible_gpus() == shown


@pytest.mark.parametrize(
    ("variable", "index", "own"),
    [
        ("4,GPU-b,6", 0, "4"),
        ("4,GPU-b,6", 1, "GPU-b"),
        ("4,GPU-b,6", 3, "4"),
        ("4,GPU-b,6", 7, "GPU-b"),
        ("7", 3, "7"),
        ("", 3, ""),
        ("-1", 3, "-1"),
    ],
)
def test_workers_take_several_visible_gpus_in_turn(monkeypatch, variable, index, own):
    monkeypatch.setenv(VISIBLE, variable)
    pin(index)
    assert os.environ[VISIBLE] == own


@pytest.mark.parametrize(("names", "own"), [(("nvidia0", "nvidia1"), "1"), (("nvidia0",), None)])
def test_worker_is_pinned_among_the_devices(devices, names, own):
    devices(*names)
    pin(1)
    assert os.environ.get(VISIBLE) == own


@pytest.mark.parametrize(
    ("variable", "workers", "shares"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,GPU-b,6", 2, ["4", "GPU-b,6"]),
        ("1,0", 2, ["1", "0"]),
        ("0,1,2", 1, ["0,1,2"]),
        ("7", 1, ["7"]),
        ("", 2, ["", ""]),
    ],
)
def test_workers_that_spread_a_model_divide_the_visible_gpus(
    monkeypatch, variable, workers, shares
):
    for index, share in enumerate(shares):
        monkeypatch.setenv(VISIBLE, variable)
        pin_share(index, workers)
        assert os.environ[VISIBLE] == share


@pytest.mark.parametrize(
    ("device", "most"), [("auto", 2), ("cuda", 2), ("cuda:1", 1), ("cpu", None)]
)
def test_more_workers_than_gpus_are_refused_where_each_spreads_a_model(monkeypatch, device, most):
    monkeypatch.setenv(VISIBLE, "0,1")
    if most is None:
        refuse_too_many(100, device)
        return
    refuse_too_many(most, device)
    with pytest.raises(UsageError, match=rf"{most + 1} workers .* give at most -n {most}$"):
        refuse_too_many(most + 1, device)
