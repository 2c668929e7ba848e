"""Names that become paths, test ids and table rows."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_autoquant.errors import UsageError
from pytest_autoquant.text import slug, unknown


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
    ],
)
def test_a_slug_reads_like_its_text(text, expected):
    assert slug(text) == expected


@given(text=st.text(max_size=300))
def test_a_slug_is_always_one_safe_path_component(text):
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,119}", slug(text))


def test_an_unknown_name_is_answered_with_the_known_ones_a_guess_and_what_to_do():
    error = unknown("overlay", "w_group6", ("default", "w_group64"), "add it as YAML")
    assert isinstance(error, UsageError)
    assert str(error) == (
        "overlay 'w_group6' is unknown (did you mean 'w_group64'?); "
        "known: default, w_group64; add it as YAML"
    )


def test_nothing_is_guessed_when_nothing_is_close():
    assert "did you mean" not in str(unknown("size", "xyz", ("small", "large"), "give one"))
