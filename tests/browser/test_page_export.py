"""CSV and Markdown of a table as it is sorted and filtered."""

import csv

import pytest
from builders import HtmlPage, with_scores
from markdown_it import MarkdownIt
from page_reading import go, sort_by, table, whole_table

FORMULAS = ('=HYPERLINK("http://evil","x")', "+1+1", "-2+3", "@SUM(A1)")
GROUPS = (
    *FORMULAS,
    'a,"b"',
    "a|b\\|c\\",
    "*a* _b_ `c` ~~d~~",
    "<b>x</b> &amp; [y](z)",
    "# no heading",
)
TABLES = {
    "cases": "cases",
    "case": "layer-groups",
    "groups": "groups",
    "compare": "movers",
    "stability": "size-stability",
    "frontier": "frontier",
    "grid": "what-can-run",
}


def tools(page, name):
    """Find a table's buttons and status: they are right below the table."""
    return page.locator(f'.dt-container:has(table[data-name="{name}"]) + .tools')


def downloaded(page, name):
    """Download a table and return its file's name and its cells."""
    with page.expect_download() as found:
        tools(page, name).get_by_role("button", name="Download CSV").click()
    content = found.value.path().read_bytes().decode()
    assert content.endswith("\r\n")
    assert "\n" not in content.replace("\r\n", "")
    return found.value.suggested_filename, list(csv.reader(content.splitlines(), strict=True))


def copied(page, name):
    """Copy a table as Markdown and return the cells that a reader of it sees."""
    tools(page, name).get_by_role("button", name="Copy as Markdown").click()
    tools(page, name).get_by_role("status").get_by_text("copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    (rows,) = HtmlPage(MarkdownIt("commonmark").enable("table").render(text)).tables
    return rows


@pytest.fixture
def copying(new_page):
    return new_page(permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def awkward(template, report_of):
    """A case whose groups have names with special characters of CSV or Markdown."""
    scores = {name: 1 / rank for rank, name in enumerate(GROUPS, start=1)}
    return report_of(with_scores(template, scores))


def safe(text):
    """Return a cell as CSV has it: text that a spreadsheet would evaluate has an apostrophe."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return text


def test_csv_and_markdown_are_the_whole_table(copying, sweep, open_report):
    open_report(copying, sweep)
    for section, name in TABLES.items():
        go(copying, f"#{section}")
        shown = whole_table(copying, name)
        assert len(shown) > 5
        assert copied(copying, name) == shown
        safe_rows = [[safe(cell) for cell in row] for row in shown]
        assert downloaded(copying, name) == (f"{name}.csv", safe_rows)


@pytest.mark.slow
def test_csv_and_markdown_are_sorted_and_filtered_as_the_table(copying, sweep, open_report):
    open_report(copying, sweep, "#cases")
    for direction in ("ascending", "descending"):
        sort_by(copying, "cases", "total score", direction)
    copying.locator("#section-cases .dt-search input").fill("wint4_aint8")
    shown = whole_table(copying, "cases")
    totals = [float(row[shown[0].index("total score (per token)")]) for row in shown[1:]]
    assert totals == sorted(totals, reverse=True)
    assert len(shown) == 13
    assert copied(copying, "cases") == downloaded(copying, "cases")[1] == shown


@pytest.mark.slow
def test_csv_has_no_formula_and_markdown_shows_names_as_they_are(copying, awkward, open_report):
    open_report(copying, awkward, "#case")
    _, rows = downloaded(copying, "layer-groups")
    assert [row[1] for row in rows[1:]] == [safe(name) for name in GROUPS]
    assert [row[1] for row in rows[1:5]] == [f"'{name}" for name in FORMULAS]
    for found in (table(copying, "layer-groups"), copied(copying, "layer-groups")):
        assert [row[1] for row in found[1:]] == [*GROUPS]


@pytest.mark.slow
def test_copying_works_without_the_clipboard_permission(swept):
    go(swept, "#frontier")
    swept.evaluate("""() => {
        navigator.clipboard.writeText = () => Promise.reject(new Error("denied"));
        document.addEventListener("copy", () => { window.taken = String(getSelection()); });
    }""")
    tools(swept, "frontier").get_by_role("button", name="Copy as Markdown").click()
    tools(swept, "frontier").get_by_role("status").get_by_text("copied").wait_for()
    assert swept.evaluate("taken").startswith("| case | ")
    assert swept.locator("textarea").count() == 0
