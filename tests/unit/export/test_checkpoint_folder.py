"""A folder is replaced whole or not at all, whatever happens in between."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint_folder import replace_folder

OLD = {"config.json": "old", "deep/x": "old"}
NEW = {"a": "new"}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model" / "schemes" / "mine"


@pytest.fixture
def old(target):
    """A target that exists."""
    (target / "deep").mkdir(parents=True)
    (target / "config.json").write_text("old")
    (target / "deep" / "x").write_text("old")
    return target


def fill(target, error=None, *, may_replace=True, meanwhile=lambda: None):
    """Fill a folder, and raise before it is complete if there is an error."""
    with replace_folder(target, may_replace=may_replace) as folder:
        (folder / "a").write_text("new")
        meanwhile()
        if error is not None:
            raise error


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def is_alone(target):
    return [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("may_replace", [False, True])
def test_new_folder_appears_when_it_is_complete(target, may_replace):
    fill(
        target,
        may_replace=may_replace,
        meanwhile=lambda: target.exists() and pytest.fail("too early"),
    )
    assert contents(target) == NEW
    assert is_alone(target)


def test_target_is_unchanged_until_the_new_folder_is_complete(old):
    fill(old, meanwhile=lambda: contents(old) == OLD or pytest.fail("replaced too early"))
    assert contents(old) == NEW
    assert is_alone(old)


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
    assert is_alone(old)


def test_folder_with_a_scheme_manifest_alone_is_replaced(target):
    target.mkdir(parents=True)
    (target / "scheme_manifest.json").write_text("measured, not exported")
    fill(target, may_replace=False)
    assert contents(target) == NEW


@pytest.mark.parametrize("error", [ExportError("mine"), ZeroDivisionError(), KeyboardInterrupt()])
def test_exception_leaves_the_old_folder_only(old, error):
    with pytest.raises(type(error)) as caught:
        fill(old, error)
    assert caught.value is error
    assert contents(old) == OLD
    assert is_alone(old)


def test_exception_leaves_nothing_where_nothing_was(target):
    with pytest.raises(ZeroDivisionError):
        fill(target, ZeroDivisionError(), may_replace=False)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("custom"), "custom"),
    ],
)
def test_error_of_the_file_system_names_the_target(old, error, text):
    with pytest.raises(ExportError) as caught:
        fill(old, error)
    assert str(caught.value) == f"{old}: cannot be written: {text}"
    assert contents(old) == OLD
    assert is_alone(old)


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
    assert is_alone(old)


def test_folder_that_appeared_meanwhile_is_not_replaced(target):
    def other():
        target.mkdir()
        (target / "theirs").write_text("other")

    with pytest.raises(ExportError, match="exists"):
        fill(target, may_replace=False, meanwhile=other)
    assert contents(target) == {"theirs": "other"}


KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_autoquant.export.checkpoint_folder import replace_folder
with replace_folder(Path(sys.argv[1]), may_replace=True) as folder:
    (folder / "half").write_text("new")
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_leaves_the_old_folder(old):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(old)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "begun\n")
    assert contents(old) == OLD
    fill(old)
    assert contents(old) == NEW


def test_file_in_place_of_a_parent_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "mine"
    with pytest.raises(ExportError, match=f"^{target}: cannot be written: "):
        fill(target)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_file_system_that_takes_no_folder_is_reported():
    target = Path("/proc/autoquant/schemes/mine")
    with pytest.raises(ExportError, match=f"^{target}: cannot be written: "):
        fill(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_reported(old):
    old.parent.chmod(0o555)
    try:
        with pytest.raises(ExportError, match="cannot be written: Permission denied"):
            fill(old)
    finally:
        old.parent.chmod(0o755)
    assert contents(old) == OLD
