"""Systems that are not supported: one sentence, wherever the package is entered."""

from pathlib import Path

import pytest
from pytest_autoquant import cli, platforms, plugin

SENTENCE = (
    "pytest-autoquant does not run on Windows; use Linux, macOS or the Windows Subsystem for Linux"
)


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(platforms, "system", lambda: "Windows")


def test_command_is_refused(windows, capsys):
    assert cli.main(["schema", "summary"]) == 2
    assert capsys.readouterr() == ("", f"aq-harness: {SENTENCE}\n")


def test_run_of_ours_is_refused_and_any_other_is_not(windows, pytester):
    pytester.makepyfile(test_other="def test_other(): pass")
    ours = pytester.makepyfile(test_ours="def test_ours(aq_case): pass")
    with pytest.raises(pytest.UsageError, match=f"^{SENTENCE}$"):
        plugin.activate(pytester.parseconfig())
    pytester.runpytest("test_other.py").assert_outcomes(passed=1)
    result = pytester.runpytest(ours)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([SENTENCE])


@pytest.mark.parametrize(
    ("given", "caches"),
    [("/my/caches", "/my/caches"), ("relative", "~/.cache"), (None, "~/.cache")],
)
def test_cache_folder_is_that_of_the_xdg_specification(monkeypatch, given, caches):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert platforms.cache_folder() == Path(caches).expanduser() / "pytest-autoquant"
