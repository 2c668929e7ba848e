"""Every section under axe and a contrast check, light and dark; and the page without scripts."""

from dataclasses import replace

import pytest
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
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_summary

#: Contrast that WCAG 2 asks for, level AA.
READABLE = 4.5
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT = ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
DARK = ("rgb(13, 17, 23)", "rgb(230, 237, 243)")

both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"])


def unreadable_labels(page, count):
    """Return the labels of the grid's cells whose contrast is too low."""
    found, drawn = texts(page, "grid"), cells(page, "grid")
    assert len(drawn) == count
    ratios = {c["label"]: contrast(written_in(c, found)["fill"], c["fill"]) for c in drawn}
    return {label: ratio for label, ratio in ratios.items() if ratio < READABLE}


@pytest.fixture
def troubled(template, report_of):
    """A report with a case of every bad outcome, and two files that cannot be read."""
    failed = replace(
        template, case=replace(template.case, status="failed", problems=("a score is not finite",))
    )
    model, pair, granularity, size, method = template.case.case_id.split("/")
    ids = ["/".join((model, pair, granularity, name, method)) for name in ("x", "y", "z")]
    other = "/".join((model, pair, "other", size, method))
    report = report_of(
        failed,
        replace(template, case=replace(template.case, case_id=other, granularity="other")),
        errors={ids[0]: FailedCase(case_id=ids[0], problem="RuntimeError: out of memory")},
        skips={ids[1]: SkippedCase(case_id=ids[1], status="needs-cuda", reason="no GPU")},
        lost=(ids[2],),
        gated={ids[0]: "total score drifted by 30%\nand a group moved"},
    )
    for name, text in (("half", '{"schema_version": 1, "ca'), ("newer", '{"schema_version": 99}')):
        (report.root / name).mkdir()
        (report.root / name / f"{name}_autoquant_lm_quant_manifest.json").write_text(text)
    rebuild(report.root)
    return report


@both_schemes
def test_axe_finds_no_violation_in_any_section(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    assert violations_by_section(page) == {}


@both_schemes
def test_axe_finds_no_violation_among_failures(new_page, troubled, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), troubled)
    assert page.locator(".notice h2:visible").all_inner_texts() == ["Left out", "Failed"]
    assert page.locator("#left-out + ul li").count() == 2
    assert page.locator("#failed + ul li").count() == 4
    assert violations_by_section(page, ("grid", "cases", "case")) == {}


def test_axe_finds_a_low_contrast(swept):
    swept.evaluate("document.documentElement.style.setProperty('--soft', '#bbbbbb')")
    assert "color-contrast" in {rule for rule, _ in violations(swept)}


@both_schemes
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
@both_schemes
def test_labels_of_a_full_grid_are_readable(new_page, large, open_report, scheme):
    viewport = {"width": 2400, "height": 2000}
    page = open_report(new_page(color_scheme=scheme, viewport=viewport), large)
    assert unreadable_labels(page, 200) == {}


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


def test_page_and_charts_follow_the_system_colour_scheme(new_page, sweep, open_report):
    page = open_report(new_page(color_scheme="light"), sweep)
    assert colours(page) == LIGHT
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(200)
    assert colours(page) == DARK


@both_schemes
def test_button_changes_the_colour_scheme_of_page_and_charts(new_page, sweep, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), sweep)
    seen = [colours(page)]
    for _ in range(2):
        page.click("#theme")
        page.wait_for_timeout(150)
        seen.append(colours(page))
        assert violations(page) == []
    assert seen == ([LIGHT, DARK, LIGHT] if scheme == "light" else [DARK, LIGHT, DARK])


@pytest.mark.parametrize("width", [360, 1280])
def test_no_section_is_wider_than_the_window(new_page, sweep, open_report, width):
    page = open_report(new_page(viewport={"width": width, "height": 740}), sweep)
    for section in SECTIONS:
        go(page, f"#{section}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, section


def test_every_section_has_one_heading_and_the_page_one_title(swept):
    assert swept.title() == "Quantization sensitivity"
    assert swept.locator("h1").count() == 1
    for section in SECTIONS:
        go(swept, f"#{section}")
        assert swept.locator("section.view:visible h2").count() == 1
        assert swept.locator("nav a[aria-current=page]").count() == 1


def test_address_with_a_section_opens_it(page, sweep):
    page.goto(sweep.page.as_uri() + "#frontier")
    settle(page)
    assert page.locator("section.view:visible h2").all_inner_texts() == ["Frontier"]


@pytest.fixture
def unscripted(new_page, sweep):
    page = new_page(java_script_enabled=False)
    page.goto(sweep.page.as_uri())
    return page


def test_all_tables_are_shown_without_scripts(unscripted, sweep):
    assert unscripted.locator("noscript .notice, .notice").first.is_visible()
    shown = unscripted.locator("section.view:visible h2").all_inner_texts()
    assert shown == ["Grid", "Cases", "Size stability", "Where it came from"]
    for name, count in (("cases", 48), ("size-stability", 30), ("what-can-run", 16)):
        rows = unscripted.locator(f'table[data-name="{name}"] tbody tr:visible')
        assert rows.count() == count, name
    text = unscripted.inner_text('table[data-name="cases"]')
    assert [m for m in sweep.manifests.values() if four(total(m)) not in text] == []
    assert "A score is the squared change" in unscripted.inner_text("#section-grid")


def test_nothing_that_needs_scripts_is_shown_without_them(unscripted):
    for selector in (".chart", ".detail", ".controls", "select", "button", ".tools"):
        assert unscripted.locator(f"{selector}:visible").count() == 0, selector
    headings = unscripted.locator("h3:visible").all_inner_texts()
    assert headings == ["Most sensitive groups", "What can run"]
    hrefs = [link.get_attribute("href") for link in unscripted.locator("nav a:visible").all()]
    assert [href for href in hrefs if unscripted.locator(href).count() == 0] == []
