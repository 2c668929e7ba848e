"""Every section under axe and our own contrast check, light and dark; and without scripts."""

from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_reading import (
    SECTIONS,
    cells,
    choose_size,
    contrast,
    four,
    go,
    settle,
    texts,
    total,
    written_in,
)
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.write import write_summary

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
OPTIONS = {"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": TAGS}}
READABLE = 4.5
SCHEMES = ("light", "dark")
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def violations(page):
    """Return what axe finds wrong: the rule and where."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate("options => axe.run(options)", OPTIONS)["violations"]
    return [(rule["id"], node["target"]) for rule in found for node in rule["nodes"]]


def label_contrasts(page):
    """Return how well the text in each cell of the grid stands out from the cell."""
    found = texts(page, "grid")
    return {
        cell["label"]: contrast(written_in(cell, found)["fill"], cell["fill"])
        for cell in cells(page, "grid")
    }


def violations_by_section(page, sections=SECTIONS):
    found = {}
    for section in sections:
        go(page, f"#{section}")
        found[section] = violations(page)
    return {section: wrong for section, wrong in found.items() if wrong}


@pytest.fixture
def troubled(template, report_of):
    """A report with a failed case and one that raised, was skipped, lost or stopped by the gate."""
    failed = replace(
        template, case=replace(template.case, status="failed", problems=("a score is not finite",))
    )
    model, pair, granularity, size, method = template.case.case_id.split("/")
    ids = ["/".join((model, pair, granularity, name, method)) for name in ("x", "y", "z")]
    other = "/".join((model, pair, "other", size, method))
    return report_of(
        failed,
        replace(template, case=replace(template.case, case_id=other, granularity="other")),
        errors={ids[0]: FailedCase(case_id=ids[0], problem="RuntimeError: out of memory")},
        skips={ids[1]: SkippedCase(case_id=ids[1], status="needs-cuda", reason="no GPU")},
        lost=(ids[2],),
        gated={failed.case.case_id: "total score drifted by 30%\nand a group moved"},
    )


def leave_out(report):
    """Put two files that cannot be read beside the report and rebuild it."""
    for name, text in {
        "half": '{"schema_version": 1, "ca',
        "newer": '{"schema_version": 99}',
    }.items():
        folder = report.root / name
        folder.mkdir()
        (folder / f"{name}_autoquant_lm_quant_manifest.json").write_text(text)
    rebuild(report.root)
    return report


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_in_any_section(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    assert violations_by_section(page) == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_where_cases_failed_and_files_were_left_out(
    new_page, troubled, open_report, scheme
):
    page = open_report(new_page(color_scheme=scheme), leave_out(troubled))
    assert page.locator(".notice h2:visible").all_inner_texts() == ["Left out", "Failed"]
    assert page.locator("#left-out + ul li").count() == 2
    assert page.locator("#failed + ul li").count() == 4
    assert violations_by_section(page, ("grid", "cases", "case")) == {}


def test_axe_would_find_something(swept):
    swept.evaluate("document.documentElement.style.setProperty('--soft', '#bbbbbb')")
    assert "color-contrast" in {rule for rule, _ in violations(swept)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_label_in_the_grid_can_be_read(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    for size in ("small", "medium", "large"):
        choose_size(page, size)
        ratios = label_contrasts(page)
        assert len(ratios) == 16
        assert {label: ratio for label, ratio in ratios.items() if ratio < READABLE} == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_label_of_a_full_grid_can_be_read(new_page, large, open_report, scheme):
    """Two hundred totals: most shades of the scale."""
    page = open_report(
        new_page(color_scheme=scheme, viewport={"width": 2400, "height": 2000}), large
    )
    ratios = label_contrasts(page)
    assert len(ratios) == 200
    assert {label: ratio for label, ratio in ratios.items() if ratio < READABLE} == {}


def test_every_shade_of_the_scale_has_a_label_that_can_be_read(
    page, template, tmp_path, open_report
):
    """The totals of one row, from the mildest to the worst in even steps of the log scale."""
    results = SessionResults()
    for index in range(101):
        granularity = f"g{index:03d}"
        case_id = f"{template.model.name}/{template.case.pair}/{granularity}/small/gradient"
        case = replace(template.case, case_id=case_id, granularity=granularity, size="small")
        state = replace(template.autoquant_state, total_score=10 ** (index / 50))
        results.add(case_result_of(replace(template, case=case, autoquant_state=state)))
    write_summary(tmp_path, results)
    open_report(page, tmp_path / "index.html")
    ratios = label_contrasts(page)
    assert len(ratios) == 101
    assert {label: ratio for label, ratio in ratios.items() if ratio < READABLE} == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_axes_of_every_chart_can_be_read(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    paper = page.evaluate(BACKGROUND)
    for section, chart in {"case": "layers", "compare": "compare", "frontier": "frontier"}.items():
        go(page, f"#{section}")
        ratios = {text["lines"][0]: contrast(text["fill"], paper) for text in texts(page, chart)}
        assert len(ratios) > 5
        assert {said for said, ratio in ratios.items() if ratio < READABLE} == set()


def test_the_page_follows_the_readers_colour_scheme(new_page, sweep, open_report):
    page = open_report(new_page(color_scheme="light"), sweep)
    assert page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(BACKGROUND) == "rgb(13, 17, 23)"
    page.wait_for_timeout(200)
    shown = {t["lines"][0]: t["fill"] for t in texts(page, "grid")}
    assert contrast(shown["quant pair"], "rgb(13, 17, 23)") >= READABLE


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_button_changes_the_colours_of_page_and_charts(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    seen = []
    for _ in range(3):
        title = next(t for t in texts(page, "grid") if t["lines"] == ["quant pair"])
        seen.append((page.evaluate(BACKGROUND), title["fill"]))
        page.click("#theme")
        page.wait_for_timeout(150)
    light = ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
    dark = ("rgb(13, 17, 23)", "rgb(230, 237, 243)")
    order = [light, dark, light] if scheme == "light" else [dark, light, dark]
    assert seen == order


def test_axe_finds_nothing_after_the_button(swept):
    for _ in range(2):
        swept.click("#theme")
        swept.wait_for_timeout(150)
        assert violations(swept) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(new_page, sweep, open_report, width):
    page = open_report(new_page(viewport={"width": width, "height": 740}), sweep)
    for section in SECTIONS:
        go(page, f"#{section}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, section


@pytest.fixture
def unscripted(new_page, sweep):
    page = new_page(java_script_enabled=False)
    page.goto(sweep.page.as_uri())
    return page


def test_without_scripts_the_tables_are_all_there(unscripted, sweep):
    assert unscripted.locator("noscript .notice, .notice").first.is_visible()
    shown = unscripted.locator("section.view:visible h2").all_inner_texts()
    assert shown == ["Grid", "Cases", "Size stability", "Where it came from"]
    assert unscripted.locator('table[data-name="cases"] tbody tr:visible').count() == 48
    assert unscripted.locator('table[data-name="size-stability"] tbody tr:visible').count() == 30
    assert unscripted.locator('table[data-name="what-can-run"] tbody tr:visible').count() == 16
    text = unscripted.inner_text('table[data-name="cases"]')
    for manifest in sweep.manifests.values():
        assert four(total(manifest)) in text
    assert "A score is the expected damage" in unscripted.inner_text("#section-grid")


def test_without_scripts_no_chart_or_control_stands_empty(unscripted):
    for selector in (".chart", ".detail", ".controls", "select", "button", ".tools"):
        assert unscripted.locator(f"{selector}:visible").count() == 0, selector
    headings = unscripted.locator("h3:visible").all_inner_texts()
    assert headings == ["Most sensitive groups", "What can run"]


def test_without_scripts_no_link_leads_nowhere(unscripted):
    hrefs = [link.get_attribute("href") for link in unscripted.locator("nav a:visible").all()]
    missing = [href for href in hrefs if unscripted.locator(href).count() == 0]
    assert missing == []


def test_every_section_has_one_heading_and_the_page_one_title(swept):
    assert swept.title() == "Quantization sensitivity"
    assert swept.locator("h1").count() == 1
    for section in SECTIONS:
        go(swept, f"#{section}")
        assert swept.locator("section.view:visible h2").count() == 1
        assert swept.locator("nav a[aria-current=page]").count() == 1


def test_a_page_opened_at_an_address_shows_that_section(page, sweep):
    page.goto(sweep.page.as_uri() + "#frontier")
    settle(page)
    assert page.locator("section.view:visible h2").all_inner_texts() == ["Frontier"]
