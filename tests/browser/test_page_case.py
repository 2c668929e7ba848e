"""One case: its layer map, its table and the files it points at."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from page_reading import (
    GROUP_SUFFIX,
    SECTIONS,
    cells,
    column,
    drawing,
    four,
    go,
    header,
    open_case,
    percent,
    scores,
    sort_by,
    table,
    total,
    whole_table,
)

NAME = "layer-groups"
CASE = "tiny-qwen3-vl/wint8_afp16/w_group64/small/gradient"
EDGES = {
    "layers.0.a": 9999.6,
    "layers.0.b": 1234.51,
    "layers.1.a": 0.0012344600001,
    "layers.1.b": 0.99995,
    "layers.2.a": 0.000099999,
    "layers.2.b": 0.0001,
    "layers.3.a": 1.23446e-05,
    "layers.3.b": 1e-300,
    "layers.4.a": 0.0,
}


def expected_rows(manifest):
    """Return the case's table as its manifest has it."""
    layers, groups = manifest["layers"], manifest["layer_sensitivity"]
    rows = []
    for name, score in scores(manifest).items():
        group = groups[name + GROUP_SUFFIX]
        members = [layers[member] for member in group["module_names"]]
        weights = sum(layer["out_features"] * layer["in_features"] for layer in members)
        kept = all(layer["selected"] for layer in members)
        share = percent(score / total(manifest))
        linears = str(len(members))
        chosen = "quantized" if kept else "16-bit"
        rows.append([str(group["rank"]), name, linears, four(score), share, f"{weights:,}", chosen])
    return rows


def scored(template, values, *, total_score=1.0):
    """Give the template other groups, of one linear each."""
    ranked = sorted(values, key=lambda name: -values[name])
    group = next(iter(template.layer_sensitivity.values()))
    layer = next(iter(template.layers.values()))
    return replace(
        template,
        layers={name: replace(layer, group=name + GROUP_SUFFIX) for name in values},
        layer_sensitivity={
            name + GROUP_SUFFIX: replace(
                group,
                scores=(score, 0.0),
                importance=score,
                rank=ranked.index(name) + 1,
                module_names=(name,),
            )
            for name, score in values.items()
        },
        sensitivity_ranking=tuple(
            replace(
                template.sensitivity_ranking[0],
                name=name + GROUP_SUFFIX,
                importance=values[name],
            )
            for name in ranked
        ),
        autoquant_state=replace(template.autoquant_state, total_score=total_score),
    )


def named(manifest, **changes):
    """Give a manifest another size or name, and the case id that goes with it."""
    case = replace(manifest.case, **changes)
    parts = (manifest.model.name, case.pair, case.granularity, case.size, case.method)
    return replace(manifest, case=replace(case, case_id="/".join(parts)))


def test_every_cases_table_is_its_manifests_ranking(swept, sweep):
    assert len(sweep.manifests) == 36
    for case_id, manifest in sweep.manifests.items():
        open_case(swept, case_id)
        assert table(swept, NAME)[1:] == expected_rows(manifest), case_id
        facts = swept.inner_text("#case-facts")
        assert f"total score\n{four(total(manifest))} per token" in facts
        bits = four(manifest["quantization"]["effective_bits"])
        assert f"weights stored in\n{bits} bits per weight" in facts


def test_the_layer_map_has_a_cell_per_group_that_says_its_score(swept, sweep):
    open_case(swept, CASE)
    manifest = sweep.manifests[CASE]
    expected = {
        f"{name}: rank {rank}, score {four(score)} per token, "
        f"{percent(score / total(manifest))} of the total"
        for rank, (name, score) in enumerate(scores(manifest).items(), start=1)
    }
    found = cells(swept, "layers")
    assert len(found) == len(expected) == 24
    assert {cell["label"] for cell in found} == expected
    places = {tuple(round(side) for side in cell["box"]) for cell in found}
    assert len(places) == 24


def test_the_heading_facts_and_files_are_the_cases(swept, sweep):
    open_case(swept, CASE)
    assert swept.inner_text("#section-case h2") == "Layer map"
    facts = swept.inner_text("#case-facts")
    manifest = sweep.manifests[CASE]
    assert facts.startswith(f"case\n{CASE}\nstatus\nmeasured\nformat\n")
    assert manifest["quantization"]["base_format_name"] in facts
    for name, text in manifest["quantization"]["effective_quantizer_summary"].items():
        assert f"{name}\n{text}" in facts


def test_an_alias_names_what_it_is_an_alias_of(swept, sweep):
    (case_id, *_) = (c for c, m in sweep.manifests.items() if m["case"]["status"] == "alias")
    open_case(swept, case_id)
    other = sweep.manifests[case_id]["case"]["alias_of"]
    assert f"status\nalias of {other}\n" in swept.inner_text("#case-facts")


def test_the_links_of_every_case_point_at_its_own_files(swept, sweep):
    seen = set()
    for case_id in sweep.manifests:
        open_case(swept, case_id)
        links = swept.eval_on_selector_all(
            "#case-facts a", "found => found.map((a) => [a.textContent, a.href])"
        )
        assert [text for text, _ in links] == ["layer report", "manifest"]
        report, manifest = (unquote(urlparse(address).path) for _, address in links)
        assert json.loads(Path(manifest).read_text())["case"]["case_id"] == case_id
        assert Path(report).read_text().startswith("# Layer sensitivity: ")
        seen |= {report, manifest}
    assert len(seen) == 72


@pytest.mark.parametrize("title", ["score (per token)", "share of total (%)", "weights (count)"])
def test_a_click_on_a_header_sorts_by_number(swept, sweep, title):
    open_case(swept, CASE)
    by = {
        name: number(sweep.manifests[CASE], title, name) for name in scores(sweep.manifests[CASE])
    }
    for direction in ("ascending", "descending"):
        sort_by(swept, NAME, title, direction)
        values = [by[name] for name in column(table(swept, NAME), "group")]
        assert values == sorted(values, reverse=direction == "descending")


def number(manifest, title, name):
    if title != "weights (count)":
        return scores(manifest)[name]
    members = manifest["layer_sensitivity"][name + GROUP_SUFFIX]["module_names"]
    layers = [manifest["layers"][member] for member in members]
    return sum(layer["out_features"] * layer["in_features"] for layer in layers)


def test_the_keyboard_sorts_and_tiny_numbers_sort_as_numbers(swept, sweep):
    open_case(swept, CASE)
    assert min(scores(sweep.manifests[CASE]).values()) < 1e-5
    assert any("e-0" in shown for shown in column(table(swept, NAME), "score (per token)"))
    tab_to_the_score(swept)
    for direction in ("ascending", "descending"):
        swept.keyboard.press("Enter")
        swept.wait_for_selector(f"#table-case th[aria-sort={direction}]")
        values = list(map(float, column(table(swept, NAME), "score (per token)")))
        assert values == sorted(values, reverse=direction == "descending")
    assert swept.locator(f'table[data-name="{NAME}"] th[aria-sort]').count() == 1


def tab_to_the_score(page):
    """Press Tab from the table on until the header of the scores has the focus."""
    page.locator(f'table[data-name="{NAME}"]').evaluate("table => table.parentElement.focus()")
    title = "document.activeElement.closest('th')?.dataset.title"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(title) == "score (per token)":
            return
    pytest.fail("no Tab led to the header")


def test_the_space_bar_sorts_as_it_presses_any_button(swept):
    open_case(swept, CASE)
    tab_to_the_score(swept)
    scrolled = swept.evaluate("scrollY")
    swept.keyboard.press("Space")
    swept.wait_for_timeout(200)
    heading = header(swept, NAME, "score (per token)")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert swept.evaluate("scrollY") == scrolled


def test_the_filter_keeps_the_rows_that_say_it(swept, sweep):
    open_case(swept, CASE)
    swept.locator("#table-case").get_by_label("Filter").fill("layers.3.mlp")
    wanted = [row for row in expected_rows(sweep.manifests[CASE]) if "layers.3.mlp" in row[1]]
    assert table(swept, NAME)[1:] == wanted
    assert len(wanted) == 2


def test_the_cases_table_pages_and_shows_every_manifest(swept, sweep):
    go(swept, "#cases")
    first = table(swept, "cases")
    assert len(first) == 26
    assert swept.inner_text("#section-cases .dt-info") == "Showing 1 to 25 of 48 entries"
    swept.click("#section-cases .dt-paging button[data-dt-idx=next]")
    second = table(swept, "cases")
    assert len(second) == 48 - 25 + 1
    assert [*first, *second[1:]] == whole_table(swept, "cases")
    rows = [*first[1:], *second[1:]]
    shown = {(row[0].removesuffix(" (exp.)"), row[1], row[2]): row for row in rows}
    for manifest in sweep.manifests.values():
        case = manifest["case"]
        row = shown[case["pair"], case["granularity"], case["size"]]
        bits = four(manifest["quantization"]["effective_bits"])
        assert row[3:6] == [case["status"], bits, four(total(manifest))]
        assert row[6] == next(iter(scores(manifest)))


def test_the_cases_table_sorts_totals_by_number(swept):
    go(swept, "#cases")
    sort_by(swept, "cases", "total score", "ascending")
    sort_by(swept, "cases", "total score", "descending")
    shown = column(whole_table(swept, "cases"), "total score (per token)")
    values = [float(text) for text in shown if text != "n/a"]
    assert values == sorted(values, reverse=True)
    assert shown[: len(values)].count("n/a") == 0


def test_a_link_in_the_cases_table_opens_that_case(swept):
    go(swept, "#cases")
    swept.locator("#section-cases .dt-search input").fill("wint4_aint8 w_group64 medium")
    swept.locator('table[data-name="cases"] tbody a').click()
    swept.wait_for_selector("#section-case:not([hidden]) #case-facts dd")
    assert swept.input_value("#case-choice") == (
        "tiny-qwen3-vl/wint4_aint8/w_group64/medium/gradient"
    )


def test_another_size_shows_another_case(swept):
    open_case(swept, CASE)
    with drawing(swept):
        swept.select_option("#view", label="medium")
    assert swept.input_value("#case-choice").split("/")[3] == "medium"
    assert "/medium/" in swept.inner_text("#case-facts dd >> nth=0")


def test_scores_are_shown_as_every_other_report_shows_them(page, template, report_of, open_report):
    report = report_of(scored(template, EDGES, total_score=sum(EDGES.values())))
    open_report(page, report, "#case")
    rows = table(page, NAME)
    shown = dict(zip(column(rows, "group"), column(rows, "score (per token)"), strict=True))
    assert shown == {name: four(value) for name, value in EDGES.items()}


def test_groups_rank_as_in_the_manifest_however_close_they_are(
    page, template, report_of, open_report
):
    values = {"layers.0.a": 0.12345601, "layers.0.b": 0.12345602, "layers.1.a": 0.12345603}
    report = report_of(scored(template, values))
    open_report(page, report, "#case")
    assert column(table(page, NAME), "group") == ["layers.1.a", "layers.0.b", "layers.0.a"]


def test_a_score_that_is_not_finite_ranks_first_and_sorts_above_all(
    page, template, report_of, open_report
):
    made = scored(template, {"layers.0.a": 1.0, "layers.0.b": 2.0})
    name = "layers.0.b" + GROUP_SUFFIX
    broken = replace(
        named(made, size="medium"),
        layer_sensitivity={
            **made.layer_sensitivity,
            name: replace(made.layer_sensitivity[name], importance=None, scores=(None, 0.0)),
        },
        sensitivity_ranking=(
            replace(made.sensitivity_ranking[0], importance=None),
            made.sensitivity_ranking[1],
        ),
        autoquant_state=replace(made.autoquant_state, total_score=None, score=None),
    )
    broken = replace(
        broken,
        case=replace(broken.case, status="failed", problems=("a score is not finite",)),
    )
    open_report(page, report_of(made, broken))
    open_case(page, broken.case.case_id)
    rows = table(page, NAME)
    assert column(rows, "group") == ["layers.0.b", "layers.0.a"]
    assert column(rows, "score (per token)") == ["n/a", "1"]
    assert column(rows, "share of total (%)") == ["n/a", "n/a"]
    assert page.inner_text("#case-notes") == "Failed: a score is not finite"


@pytest.mark.parametrize("values", [{"layers.0.a": 0.0, "layers.0.b": 0.0}, {"layers.0.a": 1.0}])
def test_a_case_without_damage_or_of_one_group_draws_without_complaint(
    page, template, report_of, open_report, values
):
    report = report_of(scored(template, values, total_score=sum(values.values())))
    open_report(page, report)
    for section in SECTIONS:
        go(page, f"#{section}")
    go(page, "#case")
    assert len(table(page, NAME)) == len(values) + 1
