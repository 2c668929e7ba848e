"""A folder is replaced whole or not at all, whatever happens in between."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.folder import replace_folder

OLD = {"config.json": "old", "deep/x": "old"}
NEW = {"a": "new"}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model" / "schemes" / "mine"


@pytest.fixture
def old(target):
    """A target that exists."""
    (target / "deep").mkdir(parents=True)
    for name, text in OLD.items():
        (target / name).write_text(text)
    return target


def fill(target, error=None, *, may_replace=True, meanwhile=lambda: None):
    """Fill a folder, and raise before it is complete if there is an error."""
    with replace_folder(target, may_replace=may_replace) as folder:
        (folder / "a").write_text("new")
        meanwhile()
        if error is not None:
            raise error


def contents(target):
    """The files of the target, which must have no sibling; None if it is missing."""
    siblings = {path.name for path in target.parent.iterdir()}
    if not siblings:
        return None
    assert siblings == {target.name}
    files = (path for path in target.rglob("*") if path.is_file())
    return {path.relative_to(target).as_posix(): path.read_text() for path in files}


@pytest.mark.parametrize("may_replace", [False, True])
def test_new_folder_appears_when_it_is_complete(target, may_replace):
    seen = []
    fill(target, may_replace=may_replace, meanwhile=lambda: seen.append(target.exists()))
    assert (seen, contents(target)) == ([False], NEW)


def test_old_folder_is_replaced_when_the_new_one_is_complete(old):
    seen = []
    fill(old, meanwhile=lambda: seen.append((old / "config.json").read_text()))
    assert (seen, contents(old)) == (["old"], NEW)


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)]
)
def test_umask_decides_the_modes(target, umask, folder, file):
    before = os.umask(umask)
    try:
        with replace_folder(target, may_replace=False) as new:
            os.close(os.open(new / "private", os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == folder
    assert stat.S_IMODE((target / "private").stat().st_mode) == file


def test_existing_folder_is_refused_before_any_work(old):
    with pytest.raises(ExportError) as error, replace_folder(old, may_replace=False):
        pytest.fail("the block must not run")
    assert str(error.value) == (
        f"{old}: exists; replace it with --aq-replace-export, or move it away"
    )
    assert contents(old) == OLD


def test_folder_with_a_scheme_manifest_alone_is_replaced(target):
    target.mkdir(parents=True)
    (target / "scheme_manifest.json").write_text("measured, not exported")
    fill(target, may_replace=False)
    assert contents(target) == NEW


@pytest.mark.parametrize("error", [ExportError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [OLD, None], ids=["replaced", "new"])
def test_exception_leaves_what_was_there(request, target, existing, error):
    if existing:
        request.getfixturevalue("old")
    with pytest.raises(type(error)) as caught:
        fill(target, error)
    assert caught.value is error
    assert contents(target) == existing


@pytest.mark.parametrize(
    ("error", "text"),
    [(OSError(28, "No space left on device"), "No space left on device"), (OSError("x"), "x")],
)
def test_error_of_the_file_system_names_the_target(old, error, text):
    with pytest.raises(ExportError) as caught:
        fill(old, error)
    assert str(caught.value) == f"{old}: cannot be written: {text}"
    assert contents(old) == OLD


def test_old_folder_stays_if_the_new_one_cannot_take_its_place(old, monkeypatch):
    rename = Path.rename

    def fails(path, to):
        if Path(to) == old and path.name == old.name:
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(ExportError, match="cannot be written: Input/output error"):
        fill(old)
    assert contents(old) == OLD


def test_folder_that_appeared_meanwhile_is_not_replaced(target):
    with pytest.raises(ExportError, match="exists"):
        fill(target, may_replace=False, meanwhile=lambda: (target / "theirs").mkdir(parents=True))
    assert [path.name for path in target.iterdir()] == ["theirs"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_autoquant.export.checkpoint.folder import replace_folder
with replace_folder(Path(sys.argv[1]), may_replace=True) as folder:
    (folder / "half").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_leaves_the_old_folder(old):
    done = subprocess.run([sys.executable, "-c", KILLED, str(old)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (old / "config.json").read_text() == "old"
    fill(old)
    assert [path.name for path in old.iterdir()] == ["a"]


def test_file_in_place_of_a_parent_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "mine"
    with pytest.raises(ExportError, match=f"^{target}: cannot be written: "):
        fill(target)
