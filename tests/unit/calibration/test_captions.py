"""Calibration captions: which are read, and batches without padding."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import pytest_autoquant
from hypothesis import given
from hypothesis import strategies as st
from pytest_autoquant.calibration.captions import (
    CaptionSet,
    bucket,
    calibration_data,
    load_captions,
    load_held_out,
)
from pytest_autoquant.errors import CaptionError

DATA = Path(pytest_autoquant.__file__).parent / "calibration" / "data"

REPOSITORY = Path(__file__).parents[3]

lengths = st.lists(st.integers(0, 12), max_size=80)
batch_sizes = st.integers(1, 9)


def rows_of(lengths):
    """One row per length; the first token says which caption it is."""
    return [tuple([number, *range(length - 1)][:length]) for number, length in enumerate(lengths)]


def data(lengths, *, batch_size=4, score_size=128, requested=None):
    lines = tuple(f"caption {number}" for number in range(len(lengths)))
    captions = CaptionSet(
        name="mine.txt", size="small", requested=requested or len(lines), lines=lines
    )
    return calibration_data(
        captions, rows_of(lengths), batch_size=batch_size, score_size=score_size
    )


def rows_in(batches):
    return [row for batch in batches for row in batch.rows]


def folded(path):
    return {" ".join(line.casefold().split()) for line in path.read_text("utf-8").splitlines()}


@given(lengths=lengths, batch_size=batch_sizes)
def test_a_batch_needs_no_padding_and_nothing_is_lost_or_duplicated(lengths, batch_size):
    rows = rows_of(lengths)
    batches = bucket(rows, batch_size)
    assert all(len({len(row) for row in batch.rows}) == 1 for batch in batches)
    assert all(1 <= len(batch.rows) <= batch_size for batch in batches)
    assert Counter(rows_in(batches)) == Counter(rows)


@given(lengths=lengths, batch_size=batch_sizes)
def test_batches_are_as_few_as_can_be_shortest_first_and_in_caption_order(lengths, batch_size):
    rows = rows_of(lengths)
    batches = bucket(rows, batch_size)
    assert len(batches) == sum(-(-n // batch_size) for n in Counter(lengths).values())
    assert rows_in(batches) == sorted(rows, key=len)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=60).filter(lambda n: max(n) >= 2),
    batch_size=batch_sizes,
    score_size=st.integers(1, 70),
)
def test_every_usable_caption_calibrates_and_the_first_ones_are_scored(
    lengths, batch_size, score_size
):
    found = data(lengths, batch_size=batch_size, score_size=score_size)
    usable = [row for row in rows_of(lengths) if len(row) >= 2]
    scored, unscored = usable[:score_size], usable[score_size:]
    assert Counter(rows_in(found.scored)) == Counter(scored)
    assert Counter(rows_in(found.unscored)) == Counter(unscored)
    assert found.batches == (*found.scored, *found.unscored)
    assert found.scored_tokens == sum(len(row) - 1 for row in scored)
    assert found.token_lengths == Counter(len(row) for row in usable)
    assert len(found.dropped) == sum(length < 2 for length in lengths)


def test_counts_are_of_tokens_and_of_next_token_predictions():
    found = data([5, 3, 5, 5, 2, 7], batch_size=2, score_size=4)
    counts = [(len(b.rows), b.num_tokens, b.num_predicted) for b in found.batches]
    assert counts == [(1, 3, 2), (2, 10, 8), (1, 5, 4), (1, 2, 1), (1, 7, 6)]
    assert len(found.scored) == 3
    assert found.scored_tokens == 14
    assert list(found.token_lengths.items()) == [(2, 1), (3, 1), (5, 3), (7, 1)]
    assert found.batch_size == 2


def test_captions_too_short_to_predict_anything_are_dropped_by_name():
    found = data([4, 1, 0, 3])
    assert found.dropped == ("caption 1", "caption 2")
    assert rows_in(found.batches) == [(3, 0, 1), (0, 0, 1, 2)]
    assert found.sha256 == hashlib.sha256(b"caption 0\ncaption 3\n").hexdigest()


def test_dropped_captions_do_not_use_up_the_score_size():
    assert [row[0] for row in rows_in(data([1, 3, 0, 3, 3], score_size=2).scored)] == [1, 3]


def test_the_digest_is_of_the_captions_and_not_of_how_they_are_batched():
    plain = data([4, 3, 5])
    assert data([4, 3, 5], batch_size=1).sha256 == plain.sha256
    assert data([4, 3, 5, 3]).sha256 != plain.sha256
    assert plain.sha256 == hashlib.sha256(b"caption 0\ncaption 1\ncaption 2\n").hexdigest()


def digest(*lines, score_size):
    captions = CaptionSet(name="mine.txt", size="small", requested=16, lines=lines)
    rows = [(1, 2, 3)] * len(lines)
    return calibration_data(captions, rows, batch_size=4, score_size=score_size).sha256


def test_the_digest_does_not_depend_on_the_order_of_the_scored_or_of_the_other_captions():
    assert digest("b", "a", "d", "c", score_size=2) == digest("a", "b", "c", "d", score_size=2)
    assert digest("a", "b", "c", "d", score_size=2) == hashlib.sha256(b"a\nb\n\nc\nd").hexdigest()


def test_the_digest_depends_on_which_captions_are_scored():
    scored_two = digest("a", "b", "c", score_size=2)
    assert digest("a", "c", "b", score_size=2) != scored_two
    assert digest("a", "b", "c", score_size=1) != scored_two
    assert digest("a", "b", "c", score_size=3) != scored_two


def test_captions_that_are_all_too_short_are_an_error():
    with pytest.raises(CaptionError, match=r"mine\.txt: none of the 3 captions has 2 tokens"):
        data([1, 0, 1])


def test_a_file_gives_its_first_captions_stripped_and_without_blank_lines(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(
        b"\xef\xbb\xbf  A dog.\r\n\r\n \t\r\nEin K\xc3\xa4fer. \r\n" + b"More.\r\n" * 30
    )
    captions = load_captions(path, "small")
    assert captions.lines == ("A dog.", "Ein Käfer.", *["More."] * 14)
    assert (captions.name, captions.size, captions.requested) == ("mine.txt", "small", 16)
    assert batched(captions).shortfall is None


def batched(captions):
    ids = [[1, 2]] * len(captions.lines)
    return calibration_data(captions, ids, batch_size=4, score_size=4)


def test_a_last_line_without_a_newline_counts(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("one\ntwo", encoding="utf-8")
    assert load_captions(path, "small").lines == ("one", "two")


@pytest.mark.parametrize(("count", "size", "needed"), [(1, "small", 16), (20, "medium", 128)])
def test_fewer_captions_than_the_size_needs_is_said_and_not_an_error(tmp_path, count, size, needed):
    path = tmp_path / "few.txt"
    path.write_text("A caption.\n" * count, encoding="utf-8")
    captions = load_captions(path, size)
    assert len(captions.lines) == count
    assert batched(captions).shortfall == (
        f"few.txt holds {count} captions, size {size} needs {needed}: measured on {count}"
    )


def test_exactly_as_many_captions_as_needed_is_no_shortfall(tmp_path):
    path = tmp_path / "exact.txt"
    path.write_text("A caption.\n" * 16, encoding="utf-8")
    assert batched(load_captions(path, "small")).shortfall is None


def test_a_shortfall_counts_what_was_measured_after_short_captions_are_dropped(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("A caption.\nHm\nAnother caption.\n", encoding="utf-8")
    captions = load_captions(path, "small")
    data = calibration_data(captions, [[1, 2], [3], [4, 5]], batch_size=4, score_size=4)
    assert data.shortfall == "few.txt holds 3 captions, size small needs 16: measured on 2"


@pytest.mark.parametrize("content", [b"", b"\n \t\r\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_captions_is_an_error(tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(CaptionError) as caught:
        load_captions(path, "small")
    assert str(caught.value) == f"captions file {path}: is empty; give one caption per line"


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CaptionError) as caught:
        load_captions(tmp_path / "nowhere.txt", "small")
    assert str(caught.value) == f"captions file {tmp_path / 'nowhere.txt'}: does not exist"


def test_a_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CaptionError) as caught:
        load_captions(tmp_path, "small")
    assert str(caught.value).startswith(f"captions file {tmp_path}: cannot be read")


def test_a_file_in_another_encoding_is_an_error_that_says_where(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"A dog.\nEin K\xe4fer.\n")
    with pytest.raises(CaptionError) as caught:
        load_captions(path, "small")
    assert str(caught.value).startswith(f"captions file {path}: is not UTF-8 (byte 12)")


def test_the_built_in_sizes_are_nested():
    sets = {size: load_captions(None, size) for size in ("small", "medium", "large")}
    large = sets["large"].lines
    assert {size: len(captions.lines) for size, captions in sets.items()} == {
        "small": 16,
        "medium": 128,
        "large": 512,
    }
    assert all(captions.lines == large[: len(captions.lines)] for captions in sets.values())


def test_the_built_in_captions_are_512_distinct_lines():
    path = DATA / "captions.txt"
    assert len(path.read_text("utf-8").splitlines()) == len(folded(path)) == 512
    assert "" not in folded(path)


@pytest.mark.parametrize(
    "name", ["training/captions.txt", "harness/pytest_autoquant/calibration/data/heldout.txt"]
)
def test_no_built_in_caption_is_one_the_embedded_model_was_trained_or_tested_on(name):
    theirs = folded(REPOSITORY / name)
    assert len(theirs) >= 128
    assert folded(DATA / "captions.txt") & theirs == set()


# Held-out captions


def test_the_built_in_held_out_captions_neither_calibrate_nor_trained():
    path = DATA / "heldout.txt"
    own = folded(path)
    assert len(own) == len(path.read_text("utf-8").splitlines()) >= 32
    assert "" not in own
    calibrating = load_captions(None, "large").lines
    assert set(load_held_out(None).lines).isdisjoint(calibrating)
    for other in (
        "harness/pytest_autoquant/calibration/data/captions.txt",
        "training/captions.txt",
    ):
        assert own & folded(REPOSITORY / other) == set()


def test_the_built_in_held_out_captions_are_all_of_the_file():
    found = load_held_out(None)
    lines = (DATA / "heldout.txt").read_text("utf-8").splitlines()
    assert found == CaptionSet(
        name="autoquant-held-out", size="held-out", requested=len(lines), lines=tuple(lines)
    )


def test_all_of_a_file_is_held_out_however_long_it_is(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(f" caption {i} \n" for i in range(700)), encoding="utf-8")
    found = load_held_out(path)
    assert (found.name, found.requested, len(found.lines)) == ("mine.txt", 700, 700)
    assert found.lines[0] == "caption 0"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n \n", "is empty; give one caption per line"),
        (b"A dog.\nEin K\xe4fer.\n", "is not UTF-8 (byte 12)"),
        (None, "does not exist"),
    ],
)
def test_held_out_captions_that_cannot_be_read_are_named(tmp_path, content, said):
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CaptionError) as caught:
        load_held_out(path)
    assert str(caught.value).startswith(f"captions file {path}: {said}")
