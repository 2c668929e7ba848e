"""The progress line, on a clock that the test sets."""

from types import SimpleNamespace

import pytest
from pytest_autoquant.scoring import progress
from pytest_autoquant.scoring.progress import ProgressLine

ERASE = "\r\x1b[K"


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def screen():
    return []


@pytest.fixture
def line(clock, screen):
    line = ProgressLine(screen.append)
    line.start("wint4_aint8-default-small")
    return line


def test_a_case_shorter_than_a_second_shows_and_erases_nothing(line, clock, screen):
    for batch in range(9):
        line("score", batch, 9)
        clock.now += 0.1
    line.stop()
    assert screen == []


def test_a_longer_case_shows_where_it_stands_and_is_erased_at_its_end(line, clock, screen):
    clock.now += 12.4
    line("score", 3, 9)
    assert screen == [f"{ERASE}wint4_aint8-default-small: score 3/9, 12 s"]
    line.stop()
    assert screen[1:] == [ERASE]
    line.stop()
    assert len(screen) == 2


def test_the_line_changes_at_most_four_times_a_second(line, clock, screen):
    clock.now += 1.0
    for step in range(1000):
        line("calibrate", step, 1000)
        clock.now += 0.002
    assert 7 <= len(screen) <= 9


def test_every_case_counts_its_own_time(line, clock, screen):
    clock.now += 5.0
    line("score", 1, 2)
    line.stop()
    line.start("next")
    line("score", 1, 2)
    assert len(screen) == 2
    clock.now += 2.0
    line("score", 2, 2)
    assert screen[-1] == f"{ERASE}next: score 2/2, 2 s"
