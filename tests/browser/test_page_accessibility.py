"""Every section under axe and a contrast check, light and dark; and the page without scripts."""

from dataclasses import replace

import pytest
from builders import changed, with_case_names
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
    violations,
    violations_by_section,
    written_in,
)
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records.outcomes import FailedCase
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_summary

#: Contrast that WCAG 2 asks for, level AA.
READABLE = 4.5
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT = ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
DARK = ("rgb(13, 17, 23)", "rgb(230, 237, 243)")


def unreadable_labels(page, count):
    """Return the labels of the grid's cells whose contrast is too low."""
    found, drawn = texts(page, "grid"), cells(page, "grid")
    assert len(drawn) == count
    ratios = {c["label"]: contrast(written_in(c, found)["fill"], c["fill"]) for c in drawn}
    return {label: ratio for label, ratio in ratios.items() if ratio < READABLE}


@pytest.fixture
def troubled(template, report_of):
    """A report with a failed case, a lost one, one that raised, and a file that is no manifest."""
    granularity = template.case.granularity
    raised, lost = (template.case.case_id.replace(granularity, name) for name in ("x", "y"))
    report = report_of(
        changed(template, "case", status="failed", problems=("a score is not finite",)),
        with_case_names(template, granularity="other"),
        errors={raised: FailedCase(case_id=raised, problem="RuntimeError: out of memory")},
        lost=(lost,),
    )
    (report.root / "half_autoquant_lm_quant_manifest.json").write_text("{")
    rebuild(report.root)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_any_section(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    assert violations_by_section(page) == {}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_among_failures(new_page, troubled, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), troubled)
    assert page.locator(".notice h2:visible").all_inner_texts() == ["Left out", "Failed"]
    assert page.locator("#left-out ~ ul li").count() == 1
    assert page.locator("#failed + ul li").count() == 3
    assert violations_by_section(page, ("grid", "cases", "case")) == {}
    page.evaluate("document.documentElement.style.setProperty('--soft', '#777777')")
    assert "color-contrast" in {rule for rule, _ in violations(page)}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_and_axes_are_readable(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    for size in ("small", "medium", "large"):
        choose_size(page, size)
        assert unreadable_labels(page, 16) == {}
    paper = page.evaluate(BACKGROUND)
    for section, chart in {"case": "layers", "compare": "compare", "frontier": "frontier"}.items():
        go(page, f"#{section}")
        ratios = {text["lines"][0]: contrast(text["fill"], paper) for text in texts(page, chart)}
        assert len(ratios) > 5
        assert {label for label, ratio in ratios.items() if ratio < READABLE} == set()


@pytest.mark.slow
def test_label_on_every_shade_of_the_scale_is_readable(page, template, tmp_path, open_report):
    """One row of totals in even steps of the log scale."""
    results = SessionResults()
    for index in range(101):
        granularity = f"g{index:03d}"
        case_id = f"{template.model.name}/{template.case.pair}/{granularity}/small/gradient"
        case = replace(template.case, case_id=case_id, granularity=granularity, size="small")
        state = replace(template.autoquant_state, total_score=10 ** (index / 50))
        results.add(case_result_of(replace(template, case=case, autoquant_state=state)))
    write_summary(tmp_path, results)
    open_report(page, tmp_path / "index.html")
    assert unreadable_labels(page, 101) == {}


def colours(page):
    """Return the colours of the page and of the text in the grid."""
    title = next(text for text in texts(page, "grid") if text["lines"] == ["quant pair"])
    return page.evaluate(BACKGROUND), title["fill"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_button(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    other = "dark" if scheme == "light" else "light"
    seen = [colours(page)]
    for change in (
        lambda: page.emulate_media(color_scheme=other),
        lambda: page.click("#theme"),
        lambda: page.click("#theme"),
    ):
        change()
        page.wait_for_timeout(200)
        seen.append(colours(page))
    own, changed = (LIGHT, DARK) if scheme == "light" else (DARK, LIGHT)
    assert seen == [own, changed, own, changed]


@pytest.mark.slow
def test_address_with_a_section_opens_it(page, sweep):
    page.goto(sweep.page.as_uri() + "#frontier")
    settle(page)
    assert page.locator("section.view:visible h2").all_inner_texts() == ["Frontier"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_sections_have_one_heading_and_fit_the_window(new_page, sweep, open_report, width):
    page = open_report(new_page(viewport={"width": width, "height": 740}), sweep)
    assert page.title() == "Quantization sensitivity"
    assert page.locator("h1").count() == 1
    for section in SECTIONS:
        go(page, f"#{section}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, section
        assert page.locator("section.view:visible h2").count() == 1
        assert page.locator("nav a[aria-current=page]").count() == 1


def test_page_without_scripts_shows_all_tables_and_nothing_that_needs_scripts(new_page, sweep):
    page = new_page(java_script_enabled=False)
    page.goto(sweep.page.as_uri())
    assert page.locator("noscript .notice, .notice").first.is_visible()
    shown = page.locator("section.view:visible h2").all_inner_texts()
    assert shown == ["Grid", "Cases", "Size stability", "Where it came from"]
    headings = page.locator("h3:visible").all_inner_texts()
    assert headings == ["Most sensitive groups", "What can run"]
    for name, count in (("cases", 48), ("size-stability", 30), ("what-can-run", 16)):
        rows = page.locator(f'table[data-name="{name}"] tbody tr:visible')
        assert rows.count() == count, name
    text = page.inner_text('table[data-name="cases"]')
    assert [m for m in sweep.manifests.values() if four(total(m)) not in text] == []
    assert "A score is the squared change" in page.inner_text("#section-grid")
    for selector in (".chart", ".detail", ".controls", "select", "button", ".tools"):
        assert page.locator(f"{selector}:visible").count() == 0, selector
    hrefs = [link.get_attribute("href") for link in page.locator("nav a:visible").all()]
    assert [href for href in hrefs if page.locator(href).count() == 0] == []
