"""Moving about in the page, reading what it shows, and the same numbers from a manifest."""

from contextlib import contextmanager

from axe_playwright_python.sync_playwright import Axe

GROUP_SUFFIX = ".quant_recipe"
SECTIONS = ("grid", "cases", "case", "groups", "compare", "stability", "frontier", "origin")

_CELLS = """chart => [...document.querySelectorAll(`#chart-${chart} path[aria-label]`)]
  .map((mark) => {
    const {x, y, width, height} = mark.getBoundingClientRect();
    return {
      label: mark.getAttribute("aria-label"),
      fill: getComputedStyle(mark).fill,
      box: [x, y, x + width, y + height],
    };
  })"""
_TEXTS = """chart => [...document.querySelectorAll(`#chart-${chart} svg text`)]
  .filter((text) => text.textContent)
  .map((text) => {
    const {x, y, width, height} = text.getBoundingClientRect();
    return {
      lines: text.children.length
        ? [...text.children].map((line) => line.textContent)
        : [text.textContent],
      fill: getComputedStyle(text).fill,
      middle: [x + width / 2, y + height / 2],
    };
  })"""
_TABLE = """name => {
  const table = document.querySelector(`table[data-name="${name}"]`);
  const head = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.title);
  const rows = [...table.tBodies[0].rows].map(
    (row) => [...row.cells].map((cell) => cell.textContent.trim()),
  );
  return [head, ...rows];
}"""

#: Channel value above which sRGB is not linear (IEC 61966-2-1).
_SRGB_LINEAR_BELOW = 0.04045
_AXE = {
    "resultTypes": ["violations"],
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
}


def settle(page):
    """Wait until a section is drawn."""
    page.wait_for_selector("body[data-shown]", state="attached")


@contextmanager
def drawing(page):
    """Wait until the page has drawn the result of the block."""
    page.evaluate("delete document.body.dataset.shown")
    yield
    settle(page)


def go(page, address):
    """Go to ``#section`` or ``#section=case``, unless it is shown already."""
    if page.evaluate("location.hash") == address:
        return
    with drawing(page):
        page.evaluate("address => { location.hash = address; }", address)


def choose_size(page, size):
    with drawing(page):
        page.select_option("#view", label=size)


def open_case(page, case_id):
    go(page, page.evaluate("id => `#case=${encodeURIComponent(id)}`", case_id))


def compare_cases(page, first, second):
    go(page, "#compare")
    for side, case_id in (("#case-a", first), ("#case-b", second)):
        if page.input_value(side) != case_id:
            with drawing(page):
                page.select_option(side, case_id)


def table(page, name):
    """Return the visible cells of a table, header first."""
    return page.evaluate(_TABLE, name)


def whole_table(page, name):
    """Return the cells on all pages of a table, header first."""
    length = page.locator(f'.dt-container:has(table[data-name="{name}"]) .dt-length select')
    if length.count():
        length.select_option("-1")
    return table(page, name)


def column(rows, title):
    """Return the cells below a title."""
    place = rows[0].index(title)
    return [row[place] for row in rows[1:]]


def sort_by(page, name, title, direction):
    """Click a header and wait until the rows follow it."""
    heading = header(page, name, title)
    heading.click()
    heading.and_(page.locator(f"[aria-sort={direction}]")).wait_for()


def header(page, name, title):
    return page.locator(f'table[data-name="{name}"] th', has_text=title).first


def cells(page, chart):
    """Return the marks of a chart: accessible label, fill and box on the screen."""
    return page.evaluate(_CELLS, chart)


def texts(page, chart):
    """Return the texts of a chart: lines, fill and where their middle is."""
    return page.evaluate(_TEXTS, chart)


def written_in(cell, found):
    """Return the one text inside a cell."""
    left, top, right, bottom = cell["box"]
    (text,) = (t for t in found if left < t["middle"][0] < right and top < t["middle"][1] < bottom)
    return text


def rgb(colour):
    """Return the channels of ``rgb(r, g, b)``, 0 to 255."""
    assert colour.startswith("rgb("), colour
    return tuple(int(part) for part in colour[4:-1].split(","))


def luminance(colour):
    """Return the relative luminance that WCAG defines."""
    parts = [channel / 255 for channel in rgb(colour)]
    linear = [c / 12.92 if c <= _SRGB_LINEAR_BELOW else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """Return the contrast ratio that WCAG defines."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def scores(manifest):
    """Return a manifest's scores by group, in its ranking's order."""
    return {
        line["name"].removesuffix(GROUP_SUFFIX): line["importance"]
        for line in manifest["sensitivity_ranking"]
    }


def total(manifest):
    return manifest["autoquant_state"]["total_score"]


def four(value):
    """Return four significant digits, as the reports write them."""
    return "n/a" if value is None else f"{value:.4g}"


def percent(share):
    return f"{100 * share:.1f}%"


def violations(page):
    """Return what axe finds: the rule and the element."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate("options => axe.run(options)", _AXE)["violations"]
    return [(rule["id"], node["target"]) for rule in found for node in rule["nodes"]]


def violations_by_section(page, sections=SECTIONS):
    """Return the violations of every section that has any."""
    found = {}
    for section in sections:
        go(page, f"#{section}")
        found[section] = violations(page)
    return {section: wrong for section, wrong in found.items() if wrong}
