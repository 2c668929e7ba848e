"""What a reader takes along: CSV and Markdown of a table as it is sorted and filtered."""

import csv
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from page_reading import GROUP_SUFFIX, go, sort_by, table, whole_table

FORMULA = '=HYPERLINK("http://evil","x")'
GROUPS = (
    FORMULA,
    "+1+1",
    "-2+3",
    "@SUM(A1)",
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


class Cells(HTMLParser):
    """The rows of the one table of a document."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.rows, self.is_in_cell = [], False

    def handle_starttag(self, tag, _):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
            self.is_in_cell = True

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.is_in_cell = False

    def handle_data(self, data):
        if self.is_in_cell:
            self.rows[-1][-1] += data


def button(page, name, text):
    """Find a table's button: they stand right below the table."""
    tools = f'.dt-container:has(table[data-name="{name}"]) + .tools'
    return page.locator(tools).get_by_role("button", name=text)


def downloaded(page, name):
    """Download a table and return its file's name and its cells."""
    with page.expect_download() as found:
        button(page, name, "Download CSV").click()
    content = found.value.path().read_bytes().decode()
    assert content.endswith("\r\n")
    assert "\n" not in content.replace("\r\n", "")
    return found.value.suggested_filename, list(csv.reader(content.splitlines(), strict=True))


def copied(page, name):
    """Copy a table as Markdown and return the cells that a reader of it sees."""
    tools = page.locator(f'.dt-container:has(table[data-name="{name}"]) + .tools')
    tools.get_by_role("button", name="Copy as Markdown").click()
    tools.get_by_role("status").get_by_text("copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    found = Cells()
    found.feed(MarkdownIt("commonmark").enable("table").render(text))
    found.close()
    return found.rows


@pytest.fixture
def copying(new_page):
    return new_page(permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def awkward(template, report_of):
    """A case whose groups are named so that CSV or Markdown could take them for something else."""
    group = next(iter(template.layer_sensitivity.values()))
    layer = next(iter(template.layers.values()))
    line = template.sensitivity_ranking[0]
    return report_of(
        replace(
            template,
            layers={name: replace(layer, group=name + GROUP_SUFFIX) for name in GROUPS},
            layer_sensitivity={
                name + GROUP_SUFFIX: replace(
                    group, rank=rank, importance=1 / rank, module_names=(name,)
                )
                for rank, name in enumerate(GROUPS, start=1)
            },
            sensitivity_ranking=tuple(
                replace(line, name=name + GROUP_SUFFIX, importance=1 / rank)
                for rank, name in enumerate(GROUPS, start=1)
            ),
        )
    )


def safe(text):
    """Return what a table's cell is in CSV: what a spreadsheet would compute has an apostrophe."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return text


def test_a_csv_is_the_whole_table(swept):
    for section, name in TABLES.items():
        go(swept, f"#{section}")
        file, rows = downloaded(swept, name)
        assert file == f"{name}.csv"
        assert rows == [[safe(cell) for cell in row] for row in whole_table(swept, name)]
        assert len(rows) > 5


def test_a_csv_is_sorted_and_filtered_as_the_table(swept):
    go(swept, "#cases")
    sort_by(swept, "cases", "total score", "ascending")
    sort_by(swept, "cases", "total score", "descending")
    swept.locator("#section-cases .dt-search input").fill("wint4_aint8")
    _, rows = downloaded(swept, "cases")
    assert rows == whole_table(swept, "cases")
    assert len(rows) == 13
    totals = [float(row[rows[0].index("total score (per token)")]) for row in rows[1:]]
    assert totals == sorted(totals, reverse=True)


def test_a_csv_has_no_cell_that_a_spreadsheet_computes(page, awkward, open_report):
    open_report(page, awkward, "#case")
    _, rows = downloaded(page, "layer-groups")
    names = [row[1] for row in rows[1:]]
    assert names[:4] == [f"'{name}" for name in GROUPS[:4]]
    assert names[4:] == [*GROUPS[4:]]
    assert [row[1] for row in table(page, "layer-groups")[1:]] == [*GROUPS]


def test_a_csv_keeps_signed_numbers(swept):
    go(swept, "#compare")
    _, rows = downloaded(swept, "movers")
    moved = [row[rows[0].index("moved (ranks)")] for row in rows[1:]]
    assert any(text.startswith("-") for text in moved)
    assert sum(map(int, moved)) == 0


def test_markdown_is_the_table(copying, sweep, open_report):
    open_report(copying, sweep)
    for section, name in TABLES.items():
        go(copying, f"#{section}")
        assert copied(copying, name) == whole_table(copying, name), name


def test_markdown_is_sorted_and_filtered_as_the_table(copying, sweep, open_report):
    open_report(copying, sweep, "#cases")
    sort_by(copying, "cases", "bits per weight", "ascending")
    copying.locator("#section-cases .dt-search input").fill("medium measured")
    rows = copied(copying, "cases")
    assert rows == whole_table(copying, "cases")
    assert len(rows) == 11


def test_markdown_shows_names_as_they_are(copying, awkward, open_report):
    open_report(copying, awkward, "#case")
    assert [row[1] for row in copied(copying, "layer-groups")[1:]] == [*GROUPS]


def test_copying_works_without_the_clipboard_permission(new_page, sweep, open_report):
    page = new_page()
    open_report(page, sweep, "#frontier")
    page.evaluate("""() => {
        navigator.clipboard.writeText = () => Promise.reject(new Error("denied"));
        document.addEventListener("copy", () => { window.taken = String(getSelection()); });
    }""")
    button(page, "frontier", "Copy as Markdown").click()
    page.locator("#section-frontier .tools [role=status]").get_by_text("copied").wait_for()
    assert page.locator("textarea").count() == 0
