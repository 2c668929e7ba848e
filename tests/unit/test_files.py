"""Files written whole or not at all, on a real file system."""

import json
import os
import resource
import threading
from contextlib import contextmanager

import pytest
from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.files import check_writable, load_json, read_bytes, write_atomic


@contextmanager
def full_disk():
    """Limit files of this process to 4 KiB: writing more fails as on a full disk.

    Only around the write itself: pytest's own output may be going to a file as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_text_is_written_as_utf8_and_bytes_unchanged(tmp_path):
    path = tmp_path / "new" / "folder" / "report.md"
    write_atomic(path, "größe\n")
    assert path.read_bytes() == b"gr\xc3\xb6\xc3\x9fe\n"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_umask_decides_file_and_folder_modes(tmp_path, mask, file, folder):
    path = tmp_path / "new" / "report.md"
    with umask(mask):
        write_atomic(path, "text")
        check_writable(tmp_path / "root")
    modes = [p.stat().st_mode & 0o777 for p in (path, path.parent, tmp_path / "root")]
    assert modes == [file, folder, folder]


def test_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path, versions = tmp_path / "manifest.json", (b"a" * 300_000, b"b" * 200_000)
    write_atomic(path, versions[0])
    writer = threading.Thread(
        target=lambda: [write_atomic(path, versions[i % 2]) for i in range(100)]
    )
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= set(versions)


def test_full_disk_leaves_the_old_file_only(tmp_path):
    path = tmp_path / "manifest.json"
    write_atomic(path, "old")
    with full_disk(), pytest.raises(WriteError) as caught:
        write_atomic(path, "new" * 10_000)
    assert str(caught.value) == f"{path}: cannot be written: File too large"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_in_place_of_the_file_is_refused_and_kept(tmp_path):
    folder = tmp_path / "manifest.json"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"manifest\.json: cannot be written: "):
        write_atomic(folder, "new")
    assert list(tmp_path.iterdir()) == [folder]
    assert [p.name for p in folder.iterdir()] == ["inside"]


def test_file_in_place_of_a_folder_is_refused_and_kept(tmp_path):
    in_the_way = tmp_path / "reports"
    in_the_way.write_text("mine")
    with pytest.raises(WriteError, match=r"summary\.md: cannot be written: "):
        write_atomic(in_the_way / "model" / "summary.md", "new")
    assert in_the_way.read_text() == "mine"


def test_longest_file_name_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write_atomic(path, "text")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_writable_folder_is_created_and_left_empty(tmp_path):
    folder = tmp_path / "reports" / "tmp"
    check_writable(folder)
    assert list(folder.iterdir()) == []
    check_writable(folder)


@pytest.mark.parametrize("below", ["reports", "reports/tmp"])
def test_unwritable_folder_is_named_with_the_option_that_chooses_it(tmp_path, below):
    (tmp_path / "reports").write_text("a file")
    with pytest.raises(WriteError) as caught:
        check_writable(tmp_path / below, name="baseline folder", option="--aq-baseline")
    message = str(caught.value)
    assert message.startswith(f"baseline folder {tmp_path / below}: cannot be written (")
    assert message.endswith("choose another one with --aq-baseline")


@pytest.mark.parametrize("name", [None, "short.json"])
def test_unreadable_file_is_named(tmp_path, name):
    path = tmp_path / "missing.json"
    with pytest.raises(RecordError) as caught:
        read_bytes(path, name)
    assert str(caught.value) == f"{name or path}: cannot be read: No such file or directory"


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\uDFFFb"', '{"\\udC00": 1}', '"\ud800"'])
def test_half_a_surrogate_pair_is_refused(text):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        load_json(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_half_a_surrogate_pair_is_refused_in_every_encoding(encoding):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        load_json('"\\ud800"'.encode(encoding))


@pytest.mark.parametrize("value", ["\U0001f600", "é\u2028", "\\ud800 as text", "\ud7ff\ue000"])
def test_other_characters_are_read_escaped_or_not(value):
    for ensure_ascii in (True, False):
        assert load_json(json.dumps(value, ensure_ascii=ensure_ascii)) == value


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_lacks_are_refused(constant):
    with pytest.raises(ValueError, match=f"^{constant} is not a JSON number$"):
        load_json(f'{{"a": [{constant}]}}')


def test_deep_nesting_is_refused():
    with pytest.raises(ValueError, match=r"^it nests too deep$"):
        load_json("[" * 100_000)
