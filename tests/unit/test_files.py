"""Files written whole or not at all, on a real file system."""

import json
import resource
import threading
from contextlib import contextmanager

import pytest
from pytest_autoquant.errors import RecordError
from pytest_autoquant.files import check_writable, load_json, write_atomic


@contextmanager
def full_disk():
    """No file of this process may grow beyond 4 KiB: writing more fails as on a full disk.

    Only around the write itself: pytest's own output may be going to a file as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_text_is_written_as_utf8_and_bytes_as_they_are_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "report.md"
    write_atomic(path, "größe\n")
    assert path.read_bytes() == b"gr\xc3\xb6\xc3\x9fe\n"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["report.md"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_reader_sees_the_old_file_or_the_new_one_never_half_of_one(tmp_path):
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


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "manifest.json"
    write_atomic(path, "old")
    with (
        full_disk(),
        pytest.raises(RecordError, match="cannot be written: File too large") as caught,
    ):
        write_atomic(path, "new" * 10_000)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path):
    folder = tmp_path / "manifest.json"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(RecordError, match=r"manifest\.json: cannot be written: "):
        write_atomic(folder, "new")
    assert list(tmp_path.iterdir()) == [folder]
    assert [p.name for p in folder.iterdir()] == ["inside"]


def test_a_file_in_place_of_a_folder_is_an_error_and_stays(tmp_path):
    in_the_way = tmp_path / "reports"
    in_the_way.write_text("mine")
    with pytest.raises(RecordError, match=r"summary\.md: cannot be written: "):
        write_atomic(in_the_way / "model" / "summary.md", "new")
    assert in_the_way.read_text() == "mine"


def test_a_writable_report_folder_is_created_and_left_empty(tmp_path):
    folder = tmp_path / "reports" / "tmp"
    check_writable(folder)
    assert list(folder.iterdir()) == []
    check_writable(folder)


@pytest.mark.parametrize("below", ["reports", "reports/tmp"])
def test_an_unwritable_report_folder_is_named_with_what_to_do(tmp_path, below):
    (tmp_path / "reports").write_text("a file")
    with pytest.raises(RecordError) as caught:
        check_writable(tmp_path / below)
    message = str(caught.value)
    assert message.startswith(f"report folder {tmp_path / below}: cannot be written (")
    assert message.endswith("give another one with --aq-report-dir")


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\uDFFFb"', '{"\\udC00": 1}', '"\ud800"'])
def test_half_a_character_is_no_text(text):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        load_json(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_half_a_character_is_found_in_every_encoding(encoding):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        load_json('"\\ud800"'.encode(encoding))


@pytest.mark.parametrize("value", ["\U0001f600", "é\u2028", "\\ud800 as text", "\ud7ff\ue000"])
def test_whole_characters_are_read_however_they_are_written(value):
    for ensure_ascii in (True, False):
        assert load_json(json.dumps(value, ensure_ascii=ensure_ascii)) == value


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_a_number_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="is no JSON number"):
        load_json(text)
