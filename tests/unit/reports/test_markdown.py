"""Markdown whose text stays in its place, read back through a Markdown renderer."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.reports.markdown import bits, code, number, percent, table, text

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "a\\|b",
    "ends in a backslash\\",
    "`code` and ``more``",
    "line\nbreak\r\nand\ttab",
    "\x1b[31mred\x00",
    "[click](javascript:alert(1))",
    "![image](http://x/y.png)",
    "<http://autolink.example>",
    "&lt;b&gt; &amp; &#124;",
    "**bold** _it_ ~~gone~~",
    "<!-- comment",
    "| --- | --- |",
    "# heading",
    "$x$ @user #1",
]
nasty = st.text(alphabet=st.sampled_from("|`\\<>&;*_[]()!#~-+=:\"'\n\r\t a1é|`\\"), max_size=30)
anything = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


def one_line(value):
    """The text as a cell shows it: controls and runs of white space are one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", value).split())


def cells(page):
    return [[one_line(cell) for cell in row] for row in page.tables[0]]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_shown_as_text(render, hostile):
    page = render(f"- Note: {text(hostile)} end")
    assert page.tags == {"ul", "li"}
    assert one_line(page.text) == f"Note: {one_line(hostile)} end"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_cells_stay_in_their_cell(render, hostile):
    page = render(table(("as text", "as code"), [(text(hostile), code(hostile))]))
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert cells(page) == [
        ["as text", "as code"],
        [one_line(hostile), one_line(hostile.replace("`", "'"))],
    ]


@settings(deadline=None, max_examples=200)
@given(values=st.lists(st.tuples(nasty | anything, nasty | anything), min_size=1, max_size=3))
def test_any_text_fills_exactly_its_own_cells(render, values):
    rows = [(text(a), code(b), "end") for a, b in values]
    page = render("before\n\n" + table(("a", "b", "c"), rows) + "\n\nafter")
    assert page.tags <= {"p", "table", "thead", "tbody", "tr", "th", "td", "code"}
    assert len(page.tables) == 1
    assert cells(page) == [
        ["a", "b", "c"],
        *([one_line(a), one_line(b.replace("`", "'")), "end"] for a, b in values),
    ]


def test_empty_code_span_is_empty():
    assert [code(value) for value in ("", "  ", "\n")] == ["", "", ""]


def test_columns_are_aligned_as_asked_and_numbers_stay_as_they_are_written(render):
    rows = [("1", "1.50e-07", "a"), ("10", "2", "b")]
    markdown = table(("rank", "score", "name"), rows, right="rr")
    assert re.sub("-+", "-", markdown.splitlines()[1]) == "| -: | -: | :- |"
    assert cells(render(markdown))[1:] == [list(row) for row in rows]


def test_table_without_rows_is_its_header(render):
    assert cells(render(table(("case", "problem"), [], right="r"))) == [["case", "problem"]]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "n/a"), (0.0, "0"), (7.0, "7"), (0.000123456, "0.0001235"), (1.23456e-12, "1.235e-12")],
)
def test_score_has_four_significant_digits(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "n/a"), (0.0, "0.0%"), (0.12345, "12.3%"), (1.0, "100.0%")]
)
def test_share_is_a_percentage(value, shown):
    assert percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "unknown"), (4.0, "4"), (4.125, "4.125"), (4.56789, "4.568")]
)
def test_bits_have_four_significant_digits(value, shown):
    assert bits(value) == shown


def test_columns_of_a_table_line_up_in_its_source():
    lines = table(("a", "long header"), [("longer cell", "1"), ("x", "")], right=" r").splitlines()
    assert lines == [
        "| a           | long header |",
        "| :---------- | ----------: |",
        "| longer cell |           1 |",
        "| x           |             |",
    ]
