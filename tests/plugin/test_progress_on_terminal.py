"""The progress line in a real terminal leaves pytest's own lines whole."""

import re

import pytest
from pytest_autoquant.plugin.worker import progress_line

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

CASES = ("wint8_afp16-default-small", "wint8_afp16-w_per_tensor-small")
ARGUMENTS = (
    "cases/test_sensitivity.py -v -p no:cacheprovider --aq-device=cpu --aq-pairs=wint8_afp16 "
    "--aq-granularities=default,w_per_tensor --aq-sizes=small --aq-engine=modelopt"
)
AT_ONCE = """
from pytest_autoquant.plugin.worker import progress_line

progress_line.QUIET_SECONDS = progress_line.REFRESH_SECONDS = 0.0
"""


@pytest.fixture
def screen(project, monkeypatch):
    """Run pytest -v in a terminal of 100 x 24; return its final screen and everything it got."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    project.makeconftest(AT_ONCE)
    child = project.spawn_pytest(ARGUMENTS, expect_timeout=120)
    child.setwinsize(24, 100)
    sent = child.read()
    child.close()
    assert child.exitstatus == 0
    shown = pyte.HistoryScreen(100, 24, history=1000)
    pyte.ByteStream(shown).feed(sent)
    return shown, sent.decode()


def rows(shown):
    above = ["".join(line[x].data for x in range(100)) for line in shown.history.top]
    return [row.rstrip() for row in (*above, *shown.display)]


def test_progress_is_shown_and_pytests_lines_keep_id_result_and_percentage(screen):
    shown, sent = screen
    counts = re.findall(rf"{CASES[0]}: score (\d+)/(\d+), \d+ s", sent)
    assert counts
    assert all(int(done) <= int(total) for done, total in counts)
    lines = rows(shown)
    for case, percentage in zip(CASES, ("50%", "100%"), strict=True):
        (line,) = (line for line in lines if f"test_sensitivity[{case}]" in line)
        assert re.fullmatch(rf"cases/\S+\[{case}\] PASSED +\[ *{percentage}\]", line)
    assert not any(re.search(r"\d+/\d+, \d+ s", line) for line in lines)


def test_nothing_is_shown_where_output_is_not_a_terminal(project, modelopt, monkeypatch):
    monkeypatch.setattr(progress_line, "QUIET_SECONDS", 0.0)
    result = project.runpytest_inprocess(*ARGUMENTS.split())
    result.assert_outcomes(passed=2)
    assert not re.search(r"\d+/\d+, \d+ s", result.stdout.str() + result.stderr.str())
