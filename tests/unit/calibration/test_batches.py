"""Batches of captions: no padding, nothing lost, and a digest of what was used."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_autoquant.calibration.batches import batches_of_equal_length, calibration_data
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import CaptionError

batch_sizes = st.integers(1, 9)


def rows_of(lengths):
    """One row per length; the first token is the caption's number."""
    return [tuple([number, *range(length - 1)][:length]) for number, length in enumerate(lengths)]


def tokens_by_line(lines, rows):
    known = dict(zip(lines, rows, strict=True))
    return lambda some: [known[line] for line in some]


def data(lengths, *, batch_size=4, score_size=128, requested=None):
    lines = tuple(f"caption {number}" for number in range(len(lengths)))
    captions = CaptionSet(
        name="mine.txt", size="small", requested=requested or len(lines), lines=lines
    )
    return calibration_data(
        captions,
        tokens_by_line(lines, rows_of(lengths)),
        batch_size=batch_size,
        score_size=score_size,
    )


def rows_in(batches):
    return [row for batch in batches for row in batch.rows]


@given(lengths=st.lists(st.integers(0, 12), max_size=80), batch_size=batch_sizes)
def test_batches_of_equal_length_are_as_few_as_possible_and_in_caption_order(lengths, batch_size):
    rows = rows_of(lengths)
    batches = batches_of_equal_length(rows, batch_size)
    assert all(len({len(row) for row in batch.rows}) == 1 for batch in batches)
    assert all(1 <= len(batch.rows) <= batch_size for batch in batches)
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
    result = data(lengths, batch_size=batch_size, score_size=score_size)
    usable = [row for row in rows_of(lengths) if len(row) >= 2]
    scored, unscored = usable[:score_size], usable[score_size:]
    assert Counter(rows_in(result.scored)) == Counter(scored)
    assert Counter(rows_in(result.unscored)) == Counter(unscored)
    assert result.batches == (*result.scored, *result.unscored)
    assert result.scored_tokens == sum(len(row) - 1 for row in scored)
    assert result.token_lengths == Counter(len(row) for row in usable)
    assert len(result.dropped) == sum(length < 2 for length in lengths)


@given(tokens=st.integers(1, 40))
def test_split_batches_hold_the_same_captions_within_the_token_limit(tokens):
    whole = data([5, 3, 5, 5, 2, 7, 5], score_size=4)
    parts = whole.split(tokens)
    assert rows_in(parts.scored) == rows_in(whole.scored)
    assert rows_in(parts.unscored) == rows_in(whole.unscored)
    assert all(len(b.rows) == 1 or b.num_tokens <= tokens for b in parts.batches)
    assert (parts.sha256, parts.scored_tokens) == (whole.sha256, whole.scored_tokens)


def test_tokens_and_next_token_predictions_are_counted():
    result = data([5, 3, 5, 5, 2, 7], batch_size=2, score_size=4)
    counts = [(len(b.rows), b.num_tokens, b.num_predicted) for b in result.batches]
    assert counts == [(1, 3, 2), (2, 10, 8), (1, 5, 4), (1, 2, 1), (1, 7, 6)]
    assert len(result.scored) == 3
    assert result.scored_tokens == 14
    assert list(result.token_lengths.items()) == [(2, 1), (3, 1), (5, 3), (7, 1)]
    assert result.batch_size == 2


def test_captions_shorter_than_two_tokens_are_dropped_by_name_and_not_scored():
    result = data([4, 1, 0, 3, 3], score_size=2)
    assert result.dropped == ("caption 1", "caption 2")
    assert rows_in(result.scored) == [(3, 0, 1), (0, 0, 1, 2)]
    assert result.sha256 == hashlib.sha256(b"caption 0\ncaption 3\n\ncaption 4").hexdigest()


def test_captions_that_are_all_too_short_are_an_error():
    with pytest.raises(CaptionError, match=r"^mine\.txt: no caption has 2 tokens .*read: 3"):
        data([1, 0, 1])


def digest(lines, score_size, batch_size=4):
    captions = CaptionSet(name="mine.txt", size="small", requested=16, lines=tuple(lines))
    return calibration_data(
        captions,
        lambda some: [(1, 2, 3)] * len(some),
        batch_size=batch_size,
        score_size=score_size,
    ).sha256


def test_digest_depends_on_which_captions_are_scored_and_not_on_order_or_batches():
    expected = hashlib.sha256(b"a\nb\n\nc\nd").hexdigest()
    assert digest("abcd", 2) == digest("badc", 2) == digest("abcd", 2, batch_size=1) == expected
    others = [digest("acbd", 2), digest("abcd", 1), digest("abcd", 4), digest("abc", 2)]
    assert expected not in others


def test_captions_that_are_too_short_are_replaced_by_the_next_ones_of_the_file():
    """Nothing after the last one that is needed is tokenized or dropped."""
    result = data([1, 3, 0, 4, 2, 5, 1, 6], requested=3, score_size=2)
    assert result.dropped == ("caption 0", "caption 2")
    assert rows_in(result.scored) == [(1, 0, 1), (3, 0, 1, 2)]
    assert rows_in(result.unscored) == [(4, 0)]
    assert result.shortfall is None
    assert result.sha256 == hashlib.sha256(b"caption 1\ncaption 3\n\ncaption 4").hexdigest()


def test_file_is_tokenized_only_as_far_as_it_is_read():
    seen = []
    captions = CaptionSet(name="m", size="small", requested=2, lines=tuple("abcdefgh"))

    def tokenize(lines):
        seen.extend(lines)
        return [(1, 2) if line != "b" else (1,) for line in lines]

    calibration_data(captions, tokenize, batch_size=1, score_size=1)
    assert seen == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("max_tokens", "expected", "num_truncated"),
    [(2, [(0, 0), (2, 0), (3, 0)], 2), (3, [(2, 0), (0, 0, 1), (3, 0, 1)], 1), (None, None, 0)],
)
def test_longer_captions_are_cut_and_counted(max_tokens, expected, num_truncated):
    """A caption of the limit's own length is whole; one that is left out is not counted."""
    rows = rows_of([3, 1, 2, 9])
    result = calibration_data(
        CaptionSet(name="m", size="small", requested=9, lines=tuple("abcd")),
        tokens_by_line("abcd", rows),
        batch_size=4,
        score_size=9,
        max_tokens=max_tokens,
    )
    whole = sorted((row for row in rows if len(row) > 1), key=len)
    assert rows_in(result.scored) == (whole if expected is None else expected)
    assert (result.num_truncated, result.max_tokens) == (num_truncated, max_tokens)
    assert len(result.dropped) == 1


def test_captions_with_the_tokens_of_an_earlier_one_are_counted():
    captions = CaptionSet(name="m", size="small", requested=9, lines=tuple("aabbbc"))
    tokens = {"a": (1, 2), "b": (3, 4), "c": (1, 2)}
    result = calibration_data(
        captions, lambda lines: [tokens[line] for line in lines], batch_size=4, score_size=2
    )
    assert (result.num_captions, result.num_duplicates) == (6, 4)
    assert data([2, 2, 3]).num_duplicates == 0


def test_digest_of_token_ids_depends_on_the_tokenizer_and_not_on_order_or_batches():
    def tokens_digest(lines, offset=0, *, score_size=2, batch_size=4):
        captions = CaptionSet(name="m", size="small", requested=4, lines=tuple(lines))
        return calibration_data(
            captions,
            lambda some: [(ord(line), 1, offset) for line in some],
            batch_size=batch_size,
            score_size=score_size,
        ).tokens_sha256

    expected = tokens_digest("abcd")
    assert expected == tokens_digest("badc") == tokens_digest("abcd", batch_size=1)
    others = [tokens_digest("abcd", 1), tokens_digest("acbd"), tokens_digest("abcd", score_size=1)]
    assert len({expected, *others}) == 4


@pytest.mark.parametrize(
    ("lengths", "requested", "expected"),
    [
        ([2] * 16, 16, None),
        ([2], 16, "mine.txt holds 1 caption, size small needs 16: measured on 1"),
        ([2, 1, 2], 16, "mine.txt holds 3 captions, size small needs 16: measured on 2"),
    ],
    ids=["exactly enough", "too few", "too few and one is dropped"],
)
def test_shortfall_names_captions_needed_and_measured(lengths, requested, expected):
    assert data(lengths, requested=requested).shortfall == expected


@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=30), count=st.integers(1, 31))
def test_scoring_the_first_captions_leaves_the_others_to_calibrate(lengths, count):
    whole = data(lengths, score_size=20)
    first = whole.scoring_first(count)
    assert first.scored_digests == whole.scored_digests[:count]
    assert first.scored_predictions == whole.scored_predictions[:count]
    assert sorted(rows_in(first.batches)) == sorted(rows_in(whole.batches))
    assert all(len({len(row) for row in batch.rows}) == 1 for batch in first.batches)
