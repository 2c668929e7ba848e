"""Every moment belongs to one phase."""

import gc
import sys

import pytest
from pytest_autoquant.phases import PhaseClock


class Time:
    """A clock that a test sets."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


def test_inner_phase_pauses_the_outer_and_all_add_up():
    time = Time()
    clock = PhaseClock(time)
    time.at += 1
    with clock.phase("sweep"):
        time.at += 2
        with clock.phase("model"):
            time.at += 4
        time.at += 8
    time.at += 16
    with clock.phase("model"):
        time.at += 32
        assert clock.seconds() == {"model": 36, "sweep": 10, "other": 17}
    assert sum(clock.seconds().values()) == time.at - 100.0


def test_phase_that_raises_ends():
    time = Time()
    clock = PhaseClock(time)

    def fail():
        with clock.phase("probing"):
            time.at += 1
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    time.at += 2
    assert clock.seconds() == {"probing": 1, "other": 2}


def test_no_more_is_moved_than_a_phase_has():
    time = Time()
    clock = PhaseClock(time)
    with clock.phase("sweep"):
        time.at += 3
    clock.move(1.0, source="sweep", target="capture")
    assert clock.seconds() == {"capture": 1, "sweep": 2, "other": 0}
    clock.move(9.0, source="sweep", target="capture")
    assert clock.seconds() == {"capture": 3, "sweep": 0, "other": 0}


def test_only_a_block_that_imports_something_keeps_objects_from_the_collector(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    clock = PhaseClock()
    with clock.importing():
        pass
    assert frozen == []
    with clock.importing():
        monkeypatch.setitem(sys.modules, "a_new_module", None)
    assert frozen == [1]


@pytest.mark.parametrize("was_enabled", [True, False])
def test_imports_are_counted_and_leave_the_garbage_collector_as_it_was(was_enabled):
    time = Time()
    clock = PhaseClock(time)
    (gc.enable if was_enabled else gc.disable)()
    try:
        with clock.importing():
            assert not gc.isenabled()
            time.at += 5
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()
    assert clock.seconds() == {"imports": 5, "other": 0}
