"""Calibration captions: the built-in sets and the user's files."""

from pathlib import Path

import pytest
import pytest_autoquant
from pytest_autoquant.calibration.captions import CaptionSet, load_captions, load_held_out
from pytest_autoquant.errors import CaptionError

DATA = Path(pytest_autoquant.__file__).parent / "calibration" / "data"
TRAINING = Path(__file__).parents[3] / "training" / "captions.txt"


def lines_of(path):
    return path.read_text("utf-8").splitlines()


def folded(path):
    """The distinct lines of a file, regardless of case and spacing."""
    return {" ".join(line.casefold().split()) for line in lines_of(path)}


def test_captions_of_a_file_are_stripped_and_blank_lines_skipped(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(
        b"\xef\xbb\xbf  A dog.\r\n\r\n \t\r\nEin K\xc3\xa4fer. \r\n" + b"More.\r\n" * 30
    )
    captions = load_captions(path, "small")
    assert captions.lines == ("A dog.", "Ein Käfer.", *["More."] * 30)
    assert (captions.name, captions.size, captions.requested) == ("mine.txt", "small", 16)


def test_all_lines_of_a_held_out_file_are_used(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(f" caption {i} \n" for i in range(700)), encoding="utf-8")
    captions = load_held_out(path)
    assert (captions.name, captions.requested, len(captions.lines)) == ("mine.txt", 700, 700)
    assert captions.lines[0] == "caption 0"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty; give one caption per line"),
        (b"\xef\xbb\xbf\n \t\r\n", "is empty; give one caption per line"),
        (b"A dog.\nEin K\xe4fer.\n", "is not UTF-8 (byte 12)"),
        (None, "does not exist"),
    ],
)
@pytest.mark.parametrize("load", [lambda path: load_captions(path, "small"), load_held_out])
def test_file_that_cannot_be_read_is_named(tmp_path, load, content, problem):
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CaptionError) as caught:
        load(path)
    assert str(caught.value).startswith(f"captions file {path}: {problem}")


def test_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(CaptionError) as caught:
        load_captions(tmp_path, "small")
    assert str(caught.value).startswith(f"captions file {tmp_path}: cannot be read")


# --- built-in captions


@pytest.mark.parametrize(("size", "requested"), [("small", 16), ("medium", 128), ("large", 512)])
def test_sizes_take_the_first_captions_of_one_set(size, requested):
    captions = load_captions(None, size)
    assert (captions.requested, len(captions.lines)) == (requested, 512)


def test_built_in_held_out_captions_are_the_whole_file():
    lines = tuple(lines_of(DATA / "heldout.txt"))
    assert len(lines) >= 32
    assert load_held_out(None) == CaptionSet(
        name="autoquant-held-out", size="held-out", requested=len(lines), lines=lines
    )


def test_built_in_captions_are_distinct_and_shared_with_no_other_set():
    paths = (DATA / "captions.txt", DATA / "heldout.txt", TRAINING)
    sets = [folded(path) for path in paths]
    assert [len(s) for s in sets[:2]] == [len(lines_of(path)) for path in paths[:2]]
    assert all("" not in s for s in sets[:2])
    assert len(sets[2]) >= 128
    assert len(set().union(*sets)) == sum(map(len, sets))
