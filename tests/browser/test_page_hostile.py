"""A report in which every name is hostile: it is shown as text and does nothing."""

from dataclasses import replace

import pytest
from builders import changed, with_scores
from page_reading import SECTIONS, cells, column, go, open_case, table, whole_table
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.write import write_case

pytestmark = pytest.mark.slow

SCRIPT = "</script><script>window.pwned=1</script>"
IMAGE = '"><img src=x onerror=window.pwned=1>'
QUOTES = "'\"`${alert(1)}`\\u003c<!--<script>"
NAMES = (SCRIPT, IMAGE, QUOTES, "\u202egpj.exe\u202c", "x" * 5000, "__proto__", "datum.score")


def hostile_case(template, index, name):
    """Write a name into every text of a manifest that the page shows."""
    scores = {f"{given}{index}": 2.0 ** -(place + index) for place, given in enumerate(NAMES)}
    made = replace(
        with_scores(template, scores),
        scheme=replace(template.scheme, quant_formats=(name,)),
        case=replace(
            template.case,
            case_id="/".join((f"m{name}", f"p{name}", f"g{name}", "small", "gradient")),
            pair=f"p{name}",
            granularity=f"g{name}",
            size="small",
            status="failed" if index == 1 else "measured",
            problems=(f"problem {name}",),
            notes=(f"note {name}", IMAGE),
        ),
        model=replace(template.model, name=f"m{name}"[:80], id=f"i{name}", architecture=name),
        quantization=replace(
            template.quantization,
            base_format_name=name,
            effective_quantizer_summary={name: SCRIPT, "weight_quantizer": name},
        ),
        environment=replace(template.environment, device_name=name, platform=name),
    )
    return changed(made, "case", weight="w")  # and the names that are repeated


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, template):
    """One report for all of these tests, because its names make it slow to draw."""
    root = tmp_path_factory.mktemp("hostile")
    for index, name in enumerate(NAMES):
        write_case(root, hostile_case(template, index, name))
    results = rebuild(root)
    assert results.left_out == []
    assert len(results.cases) == len(NAMES)
    return root / "index.html"


def visit(page):
    """Show every section and every case; yield what is shown."""
    for section in SECTIONS:
        go(page, f"#{section}")
        yield section
    for case in page.locator("#case-choice option").evaluate_all("all => all.map((o) => o.value)"):
        open_case(page, case)
        yield case[:60]


@pytest.mark.parametrize("width", [390, 1280])
def test_names_run_nothing_and_fit_the_window(new_page, hostile, open_report, width):
    page = open_report(new_page(viewport={"width": width, "height": 800}), hostile)
    for shown in visit(page):
        assert page.evaluate("window.pwned") is None, shown
        found, room = page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert found <= room, shown
    assert page.locator("img").count() == 0
    assert page.evaluate("document.scripts.length") == 3


def test_names_are_shown_as_they_are(page, hostile, open_report):
    open_report(page, hostile, "#cases")
    shown = column(whole_table(page, "cases"), "granularity")
    assert [name for name in NAMES if f"g{name}" not in shown] == []
    go(page, "#case")
    groups = column(table(page, "layer-groups"), "group")
    assert sorted(group[:-1] for group in groups) == sorted(NAMES)
    go(page, "#grid")
    assert IMAGE in page.inner_text("#failed + ul")
    for cell in cells(page, "grid"):
        assert any(name in cell["label"] for name in NAMES), cell["label"][:200]


def test_security_policy_stops_injected_elements(browser, hostile):
    """The second line of defence, if escaping failed. This page may log messages."""
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        refused = []
        page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
        page.goto(hostile.as_uri())
        with page.expect_event("requestfailed"):
            page.evaluate(
                """() => {
                    const script = document.createElement("script");
                    script.textContent = "window.pwned = 1";
                    const frame = document.createElement("div");
                    frame.innerHTML = "<img src='http://evil/x' onerror='window.pwned=1'>";
                    document.body.append(script, frame);
                }"""
            )
        assert refused == [("http://evil/x", "csp")]
        assert page.evaluate("window.pwned") is None
