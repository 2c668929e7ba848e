"""The grid: what its cells show, how they open a case, and moving between sections."""

from itertools import pairwise

import pytest
from page_reading import (
    cells,
    choose_size,
    drawing,
    four,
    go,
    luminance,
    rgb,
    texts,
    total,
    written_in,
)
from pytest_autoquant.grid.vocabulary import load_vocabulary

SIZES = ("small", "medium", "large")


def name_of(cell):
    """Return pair and granularity from a cell's label."""
    pair, granularity = cell["label"].split(": ")[0].split(", ")
    return pair, granularity


def drawn(page):
    return {name_of(cell): cell for cell in cells(page, "grid")}


def by_name(manifests):
    """Return a size's manifests by pair and granularity."""
    return {(m["case"]["pair"], m["case"]["granularity"]): m for m in manifests.values()}


def skipped(report, size):
    """Return a size's skips by pair and granularity."""
    split = ((skip["case_id"].split("/"), skip) for skip in report.summary["skipped"])
    return {(parts[1], parts[2]): skip for parts, skip in split if parts[3] == size}


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def visible_heading(page):
    (heading,) = page.locator("section.view:visible h2").all_inner_texts()
    return heading


def tab_into_the_grid(page):
    """Press Tab until a cell has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#chart-grid path')"):
            return
    pytest.fail("Tab did not reach a cell")


def test_cells_show_the_manifests_and_skips_of_the_chosen_size(swept, sweep):
    assert swept.locator("#view option").all_inner_texts() == [*SIZES]
    assert swept.locator("#view option:checked").inner_text() == "large"
    for size in SIZES:
        choose_size(swept, size)
        found, written = drawn(swept), texts(swept, "grid")
        manifests, skips = by_name(sweep.of_size(size)), skipped(sweep, size)
        assert found.keys() == manifests.keys() | skips.keys()
        assert len(found) == len(cells(swept, "grid")) == 16
        for name, manifest in manifests.items():
            check_measured(found[name], written, manifest)
        for name, skip in skips.items():
            check_skipped(found[name], written, skip, name)
        assert {m["case"]["status"] for m in manifests.values()} == {"measured", "alias"}
        assert {skip["status"] for skip in skips.values()} == {"needs-cuda", "unsupported"}


def check_measured(cell, written, manifest):
    stored = f"{four(manifest['quantization']['effective_bits'])} bits"
    alias = ", alias" if manifest["case"]["status"] == "alias" else ""
    assert written_in(cell, written)["lines"] == [four(total(manifest)), stored + alias]
    assert f"total score {four(total(manifest))} " in cell["label"]


def check_skipped(cell, written, skip, name):
    """A skipped cell is grey and gives its reason."""
    channels = rgb(cell["fill"])
    assert max(channels) - min(channels) <= 16
    stored = f"{four(skip['effective_bits'])} bits"
    assert written_in(cell, written)["lines"] == [skip["status"], stored]
    reason = f"skipped, {skip['status']}: {skip['reason']}; {stored} per weight"
    assert cell["label"] == f"{', '.join(name)}: {reason}"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_higher_score_has_a_darker_cell(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    choose_size(page, "small")
    totals = {name: total(m) for name, m in by_name(sweep.of_size("small")).items()}
    found = drawn(page)
    fills = [luminance(found[name]["fill"]) for name in sorted(totals, key=totals.get)]
    assert all(worse <= milder for milder, worse in pairwise(fills))
    assert fills[-1] < fills[0] / 10


@pytest.mark.slow
def test_pointer_and_focus_fill_the_detail_line(swept):
    for cell in cells(swept, "grid")[:6]:
        _, top, right, bottom = cell["box"]
        swept.mouse.move(right - 3, (top + bottom) / 2)
        assert swept.inner_text("#detail-grid") == cell["label"]
    text = written_in(cell, texts(swept, "grid"))
    swept.mouse.move(0, 0)
    swept.mouse.move(*text["middle"])
    assert swept.inner_text("#detail-grid") == cell["label"]
    tab_into_the_grid(swept)
    assert swept.inner_text("#detail-grid") == focused(swept)
    stroke = swept.evaluate("getComputedStyle(document.activeElement).strokeWidth")
    assert stroke == "3px"


def test_click_on_a_measured_cell_opens_its_case(swept, sweep):
    choose_size(swept, "medium")
    before = swept.evaluate("location.hash")
    (cell, *_) = (c for c in cells(swept, "grid") if "skipped" in c["label"])
    swept.mouse.click(cell["box"][2] - 3, cell["box"][3] - 3)
    swept.wait_for_timeout(50)
    assert swept.evaluate("location.hash") == before
    assert swept.locator("#section-grid").is_visible()
    name = ("wint4_aint8", "w_group64")
    case_id = by_name(sweep.of_size("medium"))[name]["case"]["case_id"]
    left, top, right, bottom = drawn(swept)[name]["box"]
    with drawing(swept):
        swept.mouse.click((left + right) / 2, (top + bottom) / 2)
    assert swept.evaluate("decodeURIComponent(location.hash)") == f"#case={case_id}"
    assert visible_heading(swept) == "Layer map"
    assert swept.locator("nav a[aria-current=page]").all_inner_texts() == ["Layer map"]
    assert swept.input_value("#case-choice") == case_id
    assert f"case\n{case_id}\n" in swept.inner_text("#case-facts")


def test_arrow_keys_move_over_the_grid_and_tab_leaves_it(swept):
    labels = {cell["label"]: name for name, cell in drawn(swept).items()}
    shown, vocabulary = set(labels.values()), load_vocabulary()
    pairs = [pair for pair in vocabulary.pairs if (pair, "default") in shown]
    columns = [name for name in vocabulary.granularities if (pairs[0], name) in shown]
    right, down = len(columns) - 1, len(pairs) - 1
    tab_into_the_grid(swept)
    visited = [labels[focused(swept)]]
    for key in ["ArrowRight"] * (right + 1) + ["ArrowDown"] * down + ["ArrowLeft", "ArrowUp"]:
        swept.keyboard.press(key)
        visited.append(labels[focused(swept)])
    along = [*((pairs[0], name) for name in columns), (pairs[0], columns[right])]
    back = [(pairs[down], columns[right - 1]), (pairs[down - 1], columns[right - 1])]
    assert visited == [*along, *((pair, columns[right]) for pair in pairs[1:]), *back]
    swept.keyboard.press("Tab")
    assert swept.evaluate("document.activeElement.closest('#chart-grid')") is None


@pytest.mark.slow
def test_enter_opens_the_focused_case_and_back_returns(swept, sweep):
    tab_into_the_grid(swept)
    swept.keyboard.press("ArrowDown")
    case = by_name(sweep.of_size("large"))["wfp8_afp8", "default"]["case"]
    with drawing(swept):
        swept.keyboard.press("Enter")
    assert swept.evaluate("decodeURIComponent(location.hash)") == f"#case={case['case_id']}"
    assert swept.evaluate("[document.activeElement.id, scrollY]") == ["main", 0]
    with drawing(swept):
        swept.go_back()
    assert visible_heading(swept) == "Grid"
    assert len(cells(swept, "grid")) == 16


@pytest.mark.slow
def test_skip_link_leads_to_the_content_of_the_shown_section(swept):
    go(swept, "#cases")
    swept.focus(".skip")
    swept.keyboard.press("Enter")
    swept.wait_for_timeout(100)
    assert swept.locator("#section-cases").is_visible()
    assert swept.evaluate("document.activeElement.id") == "main"


@pytest.mark.slow
def test_unknown_addresses_show_the_grid_or_the_first_case(swept):
    for address in ("#nowhere", "#constructor", "#toString", "#__proto__=x", "#%"):
        go(swept, "#cases")
        swept.evaluate("address => { location.hash = address; }", address)
        swept.wait_for_timeout(100)
        assert visible_heading(swept) == "Grid", address
    for address in ("#case=gone", "#case=%", "#compare=gone&%E0%A4", "#compare=&&&"):
        go(swept, address)
        assert swept.input_value("#case-choice, #case-a") != "", address
