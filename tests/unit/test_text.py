"""Names, slugs and single lines."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_autoquant.errors import UsageError
from pytest_autoquant.text import (
    counted,
    digits_apart,
    in_words,
    is_device_name,
    is_slug,
    one_line,
    shown_duration,
    shown_time,
    slug,
    told_apart,
    unknown,
    well_formed,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", "qwen--qwen3-vl-4b-instruct"),
        ("  My Model (v2) ", "my-model-v2"),
        ("Llama-3.1_8B", "llama-3.1_8b"),
        ("../../etc/passwd", "etc--passwd"),
        (".hidden", "hidden"),
        ("ab" * 100, "ab" * 60),
        (".", "unnamed-cdb4ee2a"),
        ("..", "unnamed-5ec1f7e7"),
        ("", "unnamed-e3b0c442"),
        ("模型", "unnamed-c98e118e"),
        ("con", "_con"),
        ("COM1.txt ", "_com1.txt"),
        ("lpt0", "_lpt0"),
        ("console", "console"),
        ("a. . ", "a"),
        ("a" * 119 + ".b", "a" * 119),
    ],
)
def test_slug_resembles_its_text(text, expected):
    assert slug(text) == expected


@given(text=st.text(max_size=300))
def test_slug_is_one_safe_path_component(text):
    found = slug(text)
    assert re.fullmatch(r"[a-z0-9_]([a-z0-9._-]{0,118}[a-z0-9_])?", found)
    assert not is_device_name(found)
    assert is_slug(found)


def test_unknown_name_error_has_known_names_a_guess_and_a_hint():
    error = unknown("overlay", "w_group6", ("default", "w_group64"), "add it as YAML")
    assert isinstance(error, UsageError)
    assert str(error) == (
        "overlay 'w_group6' is unknown (did you mean 'w_group64'?); "
        "known: default, w_group64; add it as YAML"
    )


def test_nothing_is_guessed_if_no_known_name_is_close():
    assert "did you mean" not in str(unknown("size", "xyz", ("small", "large"), "give one"))


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("a\r\nb\x1b[2J\u2028c", None, "a b [2J c"), ("abcdef", 4, "abcd..."), ("abcd", 4, "abcd")],
)
def test_one_line_has_no_control_characters_and_is_cut(text, most, expected):
    assert one_line(text, most) == expected


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    assert well_formed("a\udcffb\U0001f600") == "a\ufffdb\U0001f600"


def test_exception_is_shown_with_type_and_message_on_one_line():
    assert in_words(ValueError("a\n  b")) == "ValueError: a b"
    assert in_words(ValueError("abc"), most=2) == "ValueError: ab"
    assert in_words(KeyError()) == "KeyError: no message"


@pytest.mark.parametrize(
    ("count", "noun", "shown"),
    [
        (1, "scheme", "1 scheme"),
        (0, "structure case", "0 structure cases"),
        (1, "alias", "1 alias"),
        (2, "alias", "2 aliases"),
    ],
)
def test_numbers_agree_with_their_noun(count, noun, shown):
    assert counted(count, noun) == shown


@pytest.mark.parametrize(
    ("first", "second", "least", "kind", "digits"),
    [
        (0.9799999, 0.98, 4, "f", 7),
        (0.5, 0.98, 4, "f", 4),
        (1.0, 1.0, 4, "f", 4),
        (-1e-9, 0.0, 3, "%", 7),
        (4.1249, 4.125, 4, "g", 5),
        (float("inf"), 0.02, 2, "%", 2),
    ],
)
def test_digits_are_those_at_which_two_numbers_look_different(first, second, least, kind, digits):
    assert digits_apart(first, second, least, kind) == digits


def test_texts_are_cut_behind_their_first_difference():
    assert told_apart("abcdef", "abcdeg", 3) == ("abcdef", "abcdeg")
    assert told_apart("abcdef", "xbcdef", 3) == ("abc", "xbc")
    assert told_apart("abcdef", "abcdef", 3) == ("abc", "abc")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (200.0, "3 min 20 s"),
        (3600.0, "60 min 0 s"),
    ],
)
def test_duration_is_shown_in_minutes_and_seconds(seconds, shown):
    assert shown_duration(seconds) == shown
    assert shown_time("2026-11-27T03:08:14+00:00") == "2026-11-27 03:08:14 UTC"
    assert shown_time(None) == "unknown"
