"""The progress line in a terminal emulator, on a clock that the test sets."""

import io
from types import SimpleNamespace

import pyte
import pytest
from pytest_autoquant.plugin.worker import progress_line
from pytest_autoquant.plugin.worker.progress_line import ProgressLine, Terminal, terminal_writer

CASE = "wint4_aint8-default-small"
TEST_ID = f"cases/test_sensitivity.py::test_case[{CASE}] "
WIDTH = 80


class Screen:
    """A terminal of five rows in which pytest and the progress line write."""

    def __init__(self):
        self._screen = pyte.HistoryScreen(WIDTH, 5)
        self._stream = pyte.Stream(self._screen)
        self._line = ""
        self.num_writes = 0
        self.terminal = Terminal(
            write=self.write, column=lambda: len(self._line), width=lambda: WIDTH
        )

    def pytest_writes(self, text):
        """Write as pytest does, which counts the width of its current line."""
        self._line = (self._line + text).rpartition("\n")[2]
        self.feed(text)

    def write(self, text):
        self.num_writes += 1
        self.feed(text)

    def feed(self, text):
        self._stream.feed(text.replace("\n", "\r\n"))  # as the terminal's driver does

    @property
    def rows(self):
        """Every row up to the last that shows something, those that scrolled away included."""
        gone = ["".join(row[i].data for i in range(WIDTH)) for row in self._screen.history.top]
        return (
            "\n".join(row.rstrip() for row in [*gone, *self._screen.display]).rstrip().split("\n")
        )

    @property
    def column(self):
        """Column of the cursor."""
        return self._screen.cursor.x


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress_line, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def screen():
    return Screen()


@pytest.fixture
def line(clock, screen):
    line = ProgressLine(screen.terminal)
    line.start(CASE)
    return line


def test_case_shorter_than_a_second_shows_nothing(line, clock, screen):
    for batch in range(9):
        line("score", batch, 9)
        clock.now += 0.1
    line.stop()
    assert screen.num_writes == 0


@pytest.mark.parametrize("num_lines", [0, 1, 3, 4, 30])
@pytest.mark.parametrize("half_line", ["", ".....", TEST_ID, "x" * (WIDTH - 1)])
def test_half_written_line_survives_wherever_it_stands(line, clock, screen, num_lines, half_line):
    text = "".join(f"line {i}\n" for i in range(num_lines)) + half_line
    undisturbed = Screen()
    for each in (screen, undisturbed):
        each.pytest_writes(text)
    for batch in range(3):
        clock.now += 4.0
        line("score", batch, 9)
        assert screen.rows == [
            *(row.rstrip() for row in text.split("\n")),
            f"{CASE}: score {batch}/9, {4 * batch + 4} s",
        ]
    line.stop()
    assert screen.rows == undisturbed.rows
    assert screen.column == undisturbed.column == len(half_line)
    for each in (screen, undisturbed):
        each.pytest_writes(" \n" if half_line.startswith("x") else "PASSED    [ 50%]\nnext")
    assert screen.rows == undisturbed.rows


def test_longer_text_of_an_earlier_batch_leaves_nothing_behind(line, clock, screen):
    clock.now += 2.0
    line("calibrate", 100, 100)
    clock.now += 1.0
    line("score", 1, 9)
    assert screen.rows == ["", f"{CASE}: score 1/9, 3 s"]


def test_text_is_cut_at_the_width_of_the_terminal(line, clock, screen):
    line.start("x" * 100)
    clock.now += 2.0
    line("score", 1, 9)
    assert screen.rows == ["", "x" * (WIDTH - 1)]


def test_nothing_is_shown_below_a_line_that_fills_the_terminal(line, clock, screen):
    screen.pytest_writes("x" * WIDTH)
    clock.now += 2.0
    line("score", 1, 9)
    line.stop()
    assert screen.num_writes == 0


def test_line_is_erased_once(line, clock, screen):
    clock.now += 2.0
    line("score", 1, 9)
    line.stop()
    line.stop()
    assert screen.num_writes == 2


def test_line_changes_at_most_four_times_a_second(line, clock, screen):
    clock.now += 1.0
    for step in range(1000):
        line("calibrate", step, 1000)
        clock.now += 0.002
    assert 7 <= screen.num_writes <= 9


def test_each_case_counts_its_own_time(line, clock, screen):
    clock.now += 5.0
    line("score", 1, 2)
    line.start("next")
    line("score", 1, 2)
    assert screen.rows == [""]
    clock.now += 2.0
    line("score", 2, 2)
    assert screen.rows == ["", "next: score 2/2, 2 s"]


def test_output_that_goes_to_no_terminal_has_no_progress_line(pytester, clock):
    terminal = terminal_writer(pytester.parseconfigure())
    assert terminal is None
    line = ProgressLine(terminal)
    line.start(CASE)
    clock.now += 5.0
    line("score", 1, 2)
    line.stop()


class TerminalFile(io.TextIOBase):
    """A file that is a terminal, in front of the emulator."""

    def __init__(self, screen):
        self._screen = screen

    def isatty(self):
        return True

    def write(self, text):
        self._screen.feed(text)
        return len(text)


@pytest.mark.parametrize("num_lines", [0, 9])
def test_verbose_line_of_pytest_gets_its_result_beside_the_test_id(
    pytester, monkeypatch, clock, screen, num_lines
):
    file = TerminalFile(screen)
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setattr(progress_line.os, "write", lambda _, data: file.write(data.decode()))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    config = pytester.parseconfigure("-v", "-s", "--color=no")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    line = ProgressLine(terminal_writer(config))
    file.write("\n" * num_lines)
    location = ("test_a.py", 1, f"test_case[{CASE}]")
    reporter.pytest_runtest_logstart(nodeid=f"test_a.py::test_case[{CASE}]", location=location)
    line.start(CASE)
    clock.now += 2.0
    line("score", 1, 9)
    shown = f"test_a.py::test_case[{CASE}]"
    assert screen.rows[-2:] == [shown, f"{CASE}: score 1/9, 2 s"]
    line.stop()
    reporter.write("PASSED")
    assert screen.rows[-1] == f"{shown} PASSED"
