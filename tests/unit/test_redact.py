"""Redaction of command lines and messages."""

import pytest
from pytest_autoquant.redact import command_line, without_paths


@pytest.mark.parametrize(
    ("arguments", "redacted"),
    [
        ([], "pytest"),
        (["cases", "-k", "a and b"], "pytest cases -k 'a and b'"),
        (["/home/jane/project/cases"], "pytest cases"),
        (["--aq-model=/data/models/toy"], "pytest --aq-model=toy"),
        (["--aq-model", "/data/models/toy"], "pytest --aq-model toy"),
        (["-c/etc/pytest.ini"], "pytest -cpytest.ini"),
        (["~/cases/a.py"], "pytest a.py"),
        (["--aq-conf=a:/srv/b/c"], "pytest --aq-conf=a:c"),
        (["--tx", "ssh=jane@host//python=3"], "pytest --tx ssh"),
        (["--tx=2*popen//chdir=/srv/x"], "pytest '--tx=2*popen'"),
        (["relative/cases", "https://host/a/b"], "pytest relative/cases https://host/a/b"),
    ],
)
def test_folders_and_hosts_are_cut_unless_asked_for(arguments, redacted):
    assert command_line(arguments, with_paths=False) == redacted


def test_command_line_with_paths_is_unchanged():
    arguments = ["/srv/cases", "--tx", "ssh=jane@host", "-k", "a b"]
    assert command_line(arguments, with_paths=True) == (
        "pytest /srv/cases --tx ssh=jane@host -k 'a b'"
    )


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("OSError: '/home/jane/x/y.json' is missing", "OSError: 'y.json' is missing"),
        ("~jane/models/toy: not found", "toy: not found"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("1/2 of a/b", "1/2 of a/b"),
        ("host jane-laptop", "host jane-laptop"),
    ],
)
def test_absolute_paths_in_a_text_are_cut_to_their_last_part(text, redacted):
    assert without_paths(text) == redacted
