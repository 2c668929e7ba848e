"""Markdown whose text stays in its place, read back through a Markdown renderer."""

import re

import pytest
from fuzz import HOSTILE_TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.reports.markdown.elements import bits, code, number, percent, table, text

HOSTILE = [
    *HOSTILE_TEXTS,
    "ends in a backslash\\",
    "`code` and ``more``",
    "**bold** _it_ ~~gone~~",
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


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text[:14]))
def test_hostile_text_is_shown_as_text(render, hostile):
    note = render(f"- Note: {text(hostile)} end")
    assert note.tags == {"ul", "li"}
    assert one_line(note.text) == one_line(f"Note: {hostile} end")
    page = render(table(("as text", "as code"), [(text(hostile), code(hostile))]))
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    in_code = one_line(hostile.replace("`", "'"))
    assert cells(page) == [["as text", "as code"], [one_line(hostile), in_code]]


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.tuples(nasty | anything, nasty | anything), min_size=1, max_size=3))
def test_any_text_fills_exactly_its_own_cells(render, values):
    rows = [(text(a), code(b), "end") for a, b in values]
    page = render("before\n\n" + table(("a", "b", "c"), rows) + "\n\nafter")
    assert page.tags <= {"p", "table", "thead", "tbody", "tr", "th", "td", "code"}
    assert len(page.tables) == 1
    shown = [[one_line(a), one_line(b.replace("`", "'")), "end"] for a, b in values]
    assert cells(page) == [["a", "b", "c"], *shown]


def test_empty_code_span_is_empty():
    assert [code(value) for value in ("", "  ", "\n")] == ["", "", ""]


def test_table_without_rows_is_its_header(render):
    assert cells(render(table(("case", "problem"), [], right="r"))) == [["case", "problem"]]


def test_columns_of_a_table_line_up_in_its_source():
    lines = table(("a", "long header"), [("longer cell", "1"), ("x", "")], right=" r").splitlines()
    assert lines == [
        "| a           | long header |",
        "| :---------- | ----------: |",
        "| longer cell |           1 |",
        "| x           |             |",
    ]


@pytest.mark.parametrize(
    ("written", "value", "shown"),
    [
        (number, None, "n/a"),
        (number, 0.0, "0"),
        (number, 7.0, "7"),
        (number, 0.000123456, "0.0001235"),
        (number, 1.23456e-12, "1.235e-12"),
        (percent, None, "n/a"),
        (percent, 0.12345, "12.3%"),
        (percent, 1.0, "100.0%"),
        (bits, None, "unknown"),
        (bits, 4.0, "4"),
        (bits, 4.125, "4.125"),
        (bits, 4.56789, "4.568"),
    ],
)
def test_numbers_are_rounded_for_readers(written, value, shown):
    assert written(value) == shown
