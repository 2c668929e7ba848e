"""The grid: what stands in a cell, what is said of it, how one gets to its case."""

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
    """Return pair and granularity as a cell's label has them."""
    pair, granularity = cell["label"].split(": ")[0].split(", ")
    return pair, granularity


def in_order(names, known):
    return sorted(set(names), key=list(known).index)


def labels(page):
    return {name_of(cell): cell["label"] for cell in cells(page, "grid")}


def named(manifests):
    found = (manifest["case"] for manifest in manifests.values())
    return {(case["pair"], case["granularity"]): case["case_id"] for case in found}


def skipped(report, size):
    """Return a size's skips by pair and granularity."""
    split = ((skip["case_id"].split("/"), skip) for skip in report.summary["skipped"])
    return {(parts[1], parts[2]): skip for parts, skip in split if parts[3] == size}


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def tab_into_the_grid(page):
    """Press Tab until a cell has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#chart-grid path')"):
            return
    pytest.fail("no Tab led to a cell")


def test_every_pair_and_granularity_of_a_size_has_one_cell(swept, sweep):
    for size in SIZES:
        choose_size(swept, size)
        check_every_pair_and_granularity_of_a_size_has_one_cell(swept, sweep, size)


def check_every_pair_and_granularity_of_a_size_has_one_cell(swept, sweep, size):
    found = [name_of(cell) for cell in cells(swept, "grid")]
    assert len(found) == len(set(found)) == 16
    assert set(found) == named(sweep.of_size(size)).keys() | skipped(sweep, size).keys()


def test_a_cell_shows_the_total_and_the_bits_of_its_manifest(swept, sweep):
    for size in SIZES:
        choose_size(swept, size)
        check_a_cell_shows_the_total_and_the_bits_of_its_manifest(swept, sweep, size)


def check_a_cell_shows_the_total_and_the_bits_of_its_manifest(swept, sweep, size):
    drawn, found = cells(swept, "grid"), texts(swept, "grid")
    manifests, of = sweep.of_size(size), named(sweep.of_size(size))
    shown = {name_of(cell): written_in(cell, found)["lines"] for cell in drawn}
    for name, case_id in of.items():
        manifest = manifests[case_id]
        stored = f"{four(manifest['quantization']['effective_bits'])} bits"
        if manifest["case"]["status"] == "alias":
            stored += ", alias"
        assert shown[name] == [four(total(manifest)), stored]
    assert {manifest["case"]["status"] for manifest in manifests.values()} == {"measured", "alias"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_higher_score_has_a_darker_cell(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    choose_size(page, "small")
    manifests = sweep.of_size("small")
    totals = {name: total(manifests[case_id]) for name, case_id in named(manifests).items()}
    fills = {name_of(cell): luminance(cell["fill"]) for cell in cells(page, "grid")}
    ordered = sorted(totals, key=totals.get)
    for milder, worse in pairwise(ordered):
        assert fills[worse] <= fills[milder], (milder, worse)
    assert fills[ordered[-1]] < fills[ordered[0]] / 10


def test_a_skipped_cell_is_grey_and_says_why(swept, sweep):
    for size in SIZES:
        choose_size(swept, size)
        check_a_skipped_cell_is_grey_and_says_why(swept, sweep, size)


def check_a_skipped_cell_is_grey_and_says_why(swept, sweep, size):
    skips = skipped(sweep, size)
    assert {skip["status"] for skip in skips.values()} == {"needs-cuda", "unsupported"}
    drawn, found = {name_of(cell): cell for cell in cells(swept, "grid")}, texts(swept, "grid")
    for name, skip in skips.items():
        channels = rgb(drawn[name]["fill"])
        assert max(channels) - min(channels) <= 16
        stored = f"{four(skip['effective_bits'])} bits"
        assert written_in(drawn[name], found)["lines"] == [skip["status"], stored]
        said = f"skipped, {skip['status']}: {skip['reason']}; {stored} per weight"
        assert drawn[name]["label"] == f"{', '.join(name)}: {said}"


def test_the_pointer_and_the_focus_both_fill_the_detail_line(swept):
    for cell in cells(swept, "grid")[:6]:
        _, top, right, bottom = cell["box"]
        swept.mouse.move(right - 3, (top + bottom) / 2)
        assert swept.inner_text("#detail-grid") == cell["label"]
    swept.mouse.move(0, 0)
    tab_into_the_grid(swept)
    assert swept.inner_text("#detail-grid") == focused(swept)


def test_pointing_at_a_cells_text_says_its_detail_too(swept):
    cell = cells(swept, "grid")[-1]
    text = written_in(cell, texts(swept, "grid"))
    swept.mouse.move(*text["middle"])
    assert swept.inner_text("#detail-grid") == cell["label"]


def test_the_page_opens_with_the_largest_size(swept):
    assert swept.locator("#view option:checked").inner_text() == "large"
    assert swept.locator("#view option").all_inner_texts() == [*SIZES]


def test_switching_the_size_shows_its_scores(swept, sweep):
    seen = []
    for size in SIZES:
        choose_size(swept, size)
        manifests = sweep.of_size(size)
        for name, case_id in named(manifests).items():
            assert f"total score {four(total(manifests[case_id]))} " in labels(swept)[name]
        seen.append(labels(swept))
    assert seen[0] != seen[1] != seen[2]


def test_switching_sizes_without_waiting_ends_at_the_last(swept, sweep):
    swept.evaluate(
        """() => {
            const view = document.getElementById("view");
            for (const value of [0, 1, 2, 0, 1, 2, 0]) {
                view.value = value;
                view.dispatchEvent(new Event("change"));
            }
        }"""
    )
    swept.wait_for_timeout(300)
    manifests = sweep.of_size("small")
    assert swept.locator("#chart-grid svg").count() == 1
    assert len(cells(swept, "grid")) == 16
    for name, case_id in named(manifests).items():
        assert f"total score {four(total(manifests[case_id]))} " in labels(swept)[name]


def test_clicking_a_cell_opens_its_case(swept, sweep):
    choose_size(swept, "medium")
    manifests = sweep.of_size("medium")
    case_id = named(manifests)["wint4_aint8", "w_group64"]
    (cell,) = (c for c in cells(swept, "grid") if name_of(c) == ("wint4_aint8", "w_group64"))
    left, top, right, bottom = cell["box"]
    with drawing(swept):
        swept.mouse.click((left + right) / 2, (top + bottom) / 2)
    assert swept.evaluate("decodeURIComponent(location.hash)") == f"#case={case_id}"
    assert swept.locator("section.view:visible h2").all_inner_texts() == ["Layer map"]
    assert swept.locator("nav a[aria-current=page]").all_inner_texts() == ["Layer map"]
    assert swept.input_value("#case-choice") == case_id
    assert f"case\n{case_id}\n" in swept.inner_text("#case-facts")


def test_clicking_a_skipped_cell_stays(swept):
    before = swept.evaluate("location.hash")
    (cell, *_) = (c for c in cells(swept, "grid") if "skipped" in c["label"])
    swept.mouse.click(cell["box"][2] - 3, cell["box"][3] - 3)
    swept.wait_for_timeout(50)
    assert swept.evaluate("location.hash") == before
    assert swept.locator("#section-grid").is_visible()


def test_the_arrow_keys_walk_over_the_grid(swept, sweep):
    vocabulary = load_vocabulary()
    names = labels(swept).keys()
    pairs = in_order((pair for pair, _ in names), vocabulary.pairs)
    columns = in_order((name for _, name in names), vocabulary.granularities)
    tab_into_the_grid(swept)

    def here():
        return next(name for name, label in labels(swept).items() if label == focused(swept))

    assert here() == (pairs[0], columns[0])
    for granularity in columns[1:]:
        swept.keyboard.press("ArrowRight")
        assert here() == (pairs[0], granularity)
    swept.keyboard.press("ArrowRight")
    assert here() == (pairs[0], columns[-1])
    for pair in pairs[1:]:
        swept.keyboard.press("ArrowDown")
        assert here() == (pair, columns[-1])
    swept.keyboard.press("ArrowLeft")
    assert here() == (pairs[-1], columns[-2])
    swept.keyboard.press("ArrowUp")
    assert here() == (pairs[-2], columns[-2])


def test_enter_opens_the_focused_case_and_the_focus_goes_along(swept, sweep):
    tab_into_the_grid(swept)
    swept.keyboard.press("ArrowDown")
    case_id = named(sweep.of_size("large"))["wfp8_afp8", "default"]
    with drawing(swept):
        swept.keyboard.press("Enter")
    assert swept.evaluate("decodeURIComponent(location.hash)") == f"#case={case_id}"
    assert swept.evaluate("document.activeElement.id") == "main"
    assert swept.evaluate("scrollY") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_is_visible(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    tab_into_the_grid(page)
    stroke, width, wanted = page.evaluate(
        """() => {
            const style = getComputedStyle(document.activeElement);
            const root = getComputedStyle(document.documentElement);
            return [style.stroke, style.strokeWidth, root.getPropertyValue("--focus").trim()];
        }"""
    )
    assert width == "3px"
    assert rgb(stroke) == tuple(bytes.fromhex(wanted[1:]))


def test_back_leads_from_the_case_to_the_grid(swept):
    tab_into_the_grid(swept)
    swept.keyboard.press("ArrowDown")
    with drawing(swept):
        swept.keyboard.press("Enter")
    with drawing(swept):
        swept.go_back()
    assert swept.locator("section.view:visible h2").all_inner_texts() == ["Grid"]
    assert len(cells(swept, "grid")) == 16


def test_one_tab_leaves_the_grid(swept):
    tab_into_the_grid(swept)
    swept.keyboard.press("Tab")
    assert swept.evaluate("document.activeElement.closest('#chart-grid')") is None


def test_the_skip_link_leads_to_the_content_and_stays_in_its_section(swept):
    go(swept, "#cases")
    swept.focus(".skip")
    swept.keyboard.press("Enter")
    swept.wait_for_timeout(100)
    assert swept.locator("#section-cases").is_visible()
    assert swept.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("address", ["#nowhere", "#constructor", "#toString", "#__proto__=x", "#%"])
def test_an_address_that_is_none_shows_the_grid(swept, address):
    go(swept, "#cases")
    swept.evaluate("address => { location.hash = address; }", address)
    swept.wait_for_timeout(100)
    assert swept.locator("section.view:visible h2").all_inner_texts() == ["Grid"]


def test_a_case_that_is_not_there_shows_the_first_one(swept):
    for address in ("#case=gone", "#case=%", "#compare=gone&%E0%A4", "#compare=&&&"):
        go(swept, address)
        assert swept.input_value("#case-choice, #case-a") != ""
