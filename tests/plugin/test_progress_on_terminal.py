"""A long case shows where it stands on a terminal, although pytest captures output."""

import re

import pytest

CASE = "wint8_afp16-default-medium"
LONG_CASE = (
    *("-p", "no:cacheprovider", "cases/test_sensitivity.py", "--aq-device=cpu"),
    *("--aq-method=kl_div", "--aq-pairs=wint8_afp16", "--aq-granularities=default"),
    "--aq-sizes=medium",
)
ERASE = "\r\x1b[K"
SHOWN = re.compile(rf"{re.escape(ERASE + CASE)}: (\w+) (\d+)/(\d+), (\d+) s")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_terminal_shows_phase_batch_and_elapsed_seconds_and_loses_them_at_the_end(project):
    pytest.importorskip("pexpect")
    child = project.spawn_pytest(" ".join(LONG_CASE), expect_timeout=120)
    text = child.read().decode()
    child.close()
    assert child.exitstatus == 0
    shown = [(phase, *map(int, numbers)) for phase, *numbers in SHOWN.findall(text)]
    assert len(shown) >= 3
    assert {phase for phase, *_ in shown} <= {"calibrate", "score"}
    scored = [(done, total) for phase, done, total, _ in shown if phase == "score"]
    assert scored == sorted(scored)
    assert all(0 <= done <= total for done, total in scored)
    seconds = [elapsed for *_, elapsed in shown]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 1
    after = text[text.rindex(f"{CASE}: ") :]
    assert after.index(ERASE) < after.index("1 passed")


def test_nothing_is_shown_where_output_is_no_terminal(project, modelopt):
    result = project.runpytest_inprocess(*LONG_CASE, "--durations=0", "-v")
    result.assert_outcomes(passed=1)
    (seconds,) = re.findall(r"^([\d.]+)s call", result.stdout.str(), re.MULTILINE)
    assert float(seconds) > 1
    assert not re.search(r"\d+/\d+, \d+ s", result.stdout.str() + result.stderr.str())
    assert ERASE not in result.stdout.str() + result.stderr.str()
