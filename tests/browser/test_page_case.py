"""One case: its layer map, its table and its files; and the table of all cases."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from builders import with_case_names, with_check, with_scores
from page_reading import (
    GROUP_SUFFIX,
    SECTIONS,
    cells,
    column,
    drawing,
    four,
    go,
    open_case,
    percent,
    scores,
    sort_by,
    table,
    total,
    violations,
    whole_table,
)
from pytest_autoquant.manifests.records.packed_scores import pack_scores

NAME = "layer-groups"
CASE = "tiny-qwen3-vl/wint8_afp16/w_group64/small/gradient"


def expected_rows(manifest):
    """Return the rows that the manifest of a case gives."""
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


def check_case(page, case_id, manifest):
    """Compare table, facts and files of a case with its manifest; return the files' paths."""
    open_case(page, case_id)
    assert table(page, NAME)[1:] == expected_rows(manifest), case_id
    facts = page.inner_text("#case-facts")
    case, quantization = manifest["case"], manifest["quantization"]
    status = f"alias of {case['alias_of']}" if case["alias_of"] else case["status"]
    assert facts.startswith(f"case\n{case_id}\nstatus\n{status}\nformat\n")
    assert quantization["base_format_name"] in facts
    assert f"total score\n{four(total(manifest))} per token" in facts
    bits = four(quantization["effective_bits"])
    assert f"weights stored in\n{bits} bits per weight" in facts
    for name, text in quantization["effective_quantizer_summary"].items():
        assert f"{name}\n{text}" in facts
    links = page.locator("#case-facts a")
    assert links.all_inner_texts() == ["layer report", "manifest"]
    addresses = links.evaluate_all("found => found.map((a) => a.href)")
    report, file = (Path(unquote(urlparse(address).path)) for address in addresses)
    assert json.loads(file.read_text())["case"]["case_id"] == case_id
    assert report.read_text().startswith("# Layer sensitivity: ")


def test_measured_case_and_alias_show_their_manifests(swept, sweep):
    alias = next(c for c, m in sweep.manifests.items() if m["case"]["status"] == "alias")
    for case_id in (CASE, alias):
        check_case(swept, case_id, sweep.manifests[case_id])


@pytest.mark.slow
def test_every_case_shows_its_manifest(swept, sweep):
    assert len(sweep.manifests) == 36
    for case_id, manifest in sweep.manifests.items():
        check_case(swept, case_id, manifest)


def test_layer_map_has_a_cell_per_group_with_its_score(swept, sweep):
    open_case(swept, CASE)
    manifest = sweep.manifests[CASE]
    found = cells(swept, "layers")
    assert {cell["label"] for cell in found} == {
        f"{name}: rank {rank}, score {four(score)} per token, "
        f"{percent(score / total(manifest))} of the total"
        for rank, (name, score) in enumerate(scores(manifest).items(), start=1)
    }
    assert len(found) == len({tuple(map(round, cell["box"])) for cell in found}) == 24


def with_error_bars(manifest):
    """Return a manifest whose standard errors are 10% of the scores; ranks 1 and 2 are tied."""
    data = manifest.dataset
    lengths = [length for length, count in data.token_lengths.items() for _ in range(count)]
    predictions = tuple(length - 1 for length in lengths)
    digests = tuple(f"{index:08}" for index in range(len(predictions)))
    data = replace(data, scored_captions=digests, scored_predictions=predictions)
    groups = {
        name: replace(
            group,
            standard_error=group.importance / 10,
            rank_interval=(1, 2) if group.rank < 3 else (group.rank, group.rank),
            top_ten_probability=float(group.rank < 11),
            caption_scores=pack_scores([group.importance * n for n in predictions]),
        )
        for name, group in manifest.layer_sensitivity.items()
    }
    return replace(manifest, dataset=data, layer_sensitivity=groups)


def test_error_bars_are_whiskers_and_columns_where_they_are_known(
    page, swept, open_report, report_of, template
):
    open_case(swept, CASE)
    assert swept.locator("#case-errors").is_hidden()
    report = report_of(with_error_bars(template))
    open_report(page, report, f"#case={template.case.case_id}")
    ranked = scores(report.manifests[template.case.case_id])
    rows = table(page, NAME)
    assert column(rows, "standard error") == [f"{score / 10:.2g}" for score in ranked.values()]
    assert column(rows, "ranks at 95%") == ["1 to 2"] * 2 + [str(r) for r in range(3, 25)]
    assert page.locator("#chart-errors .mark-rule.layer_0_marks line").count() == 24
    assert violations(page) == []
    found = cells(page, "errors")
    assert len(found) == 24
    name, score = next(iter(ranked.items()))
    assert found[0]["label"] == (
        f"{name}: score {four(score)} ± {score / 10:.2g} per token, rank 1 to 2 at 95%"
    )


def tab_to_the_score(page):
    """Press Tab from the table on until the header of the scores has the focus."""
    page.locator(f'table[data-name="{NAME}"]').evaluate("table => table.parentElement.focus()")
    title = "document.activeElement.closest('th')?.dataset.title"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(title) == "score (per token)":
            return
    pytest.fail("Tab did not reach the header")


def test_enter_and_space_on_a_header_sort_tiny_numbers(swept, sweep):
    open_case(swept, CASE)
    assert min(scores(sweep.manifests[CASE]).values()) < 1e-5
    tab_to_the_score(swept)
    scrolled = swept.evaluate("scrollY")
    for key, direction in (("Enter", "ascending"), ("Space", "descending")):
        swept.keyboard.press(key)
        swept.wait_for_selector(f"#table-case th[aria-sort={direction}]")
        values = list(map(float, column(table(swept, NAME), "score (per token)")))
        assert values == sorted(values, reverse=direction == "descending")
    assert swept.evaluate("scrollY") == scrolled
    assert swept.locator(f'table[data-name="{NAME}"] th[aria-sort]').count() == 1


def test_cases_table_has_pages_and_shows_every_manifest(swept, sweep):
    go(swept, "#cases")
    first = table(swept, "cases")
    assert swept.inner_text("#section-cases .dt-info") == "Showing 1 to 25 of 48 entries"
    swept.click("#section-cases .dt-paging button[data-dt-idx=next]")
    second = table(swept, "cases")
    assert (len(first), len(second)) == (26, 24)
    assert [*first, *second[1:]] == whole_table(swept, "cases")
    shown = {(r[0].removesuffix(" (exp.)"), *r[1:3]): r for r in (*first[1:], *second[1:])}
    for direction in ("ascending", "descending"):
        sort_by(swept, "cases", "total score", direction)
    totals = column(table(swept, "cases"), "total score (per token)")
    values = [float(text) for text in totals if text != "n/a"]
    assert values == sorted(values, reverse=True)
    assert (len(values), "n/a" in totals[:36]) == (36, False)
    for manifest in sweep.manifests.values():
        case, bits = manifest["case"], four(manifest["quantization"]["effective_bits"])
        row = shown[case["pair"], case["granularity"], case["size"]]
        assert row[3:6] == [case["status"], bits, four(total(manifest))]
        assert row[-1] == next(iter(scores(manifest)))


@pytest.mark.slow
def test_link_in_the_cases_table_opens_the_case_and_another_size_another_one(swept):
    go(swept, "#cases")
    swept.locator("#section-cases .dt-search input").fill("wint4_aint8 w_group64 medium")
    swept.locator('table[data-name="cases"] tbody a').click()
    swept.wait_for_selector("#section-case:not([hidden]) #case-facts dd")
    assert swept.input_value("#case-choice") == (
        "tiny-qwen3-vl/wint4_aint8/w_group64/medium/gradient"
    )
    with drawing(swept):
        swept.select_option("#view", label="small")
    assert swept.input_value("#case-choice").split("/")[3] == "small"
    assert "/small/" in swept.inner_text("#case-facts dd >> nth=0")


@pytest.mark.slow
def test_score_that_is_not_finite_ranks_first(page, template, report_of, open_report):
    made = with_scores(template, {"layers.0.a": 1.0, "layers.0.b": 2.0})
    broken = with_scores(template, {"layers.0.a": 1.0, "layers.0.b": None})
    broken = with_case_names(
        broken, size="medium", status="failed", problems=("a score is not finite",)
    )
    open_report(page, report_of(made, broken))
    open_case(page, broken.case.case_id)
    rows = table(page, NAME)
    assert column(rows, "group") == ["layers.0.b", "layers.0.a"]
    assert column(rows, "score (per token)") == ["n/a", "1"]
    assert column(rows, "share of total (%)") == ["n/a", "n/a"]
    assert page.inner_text("#case-notes") == "Failed: a score is not finite"


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {
            "layers.0.a": 9999.6,
            "layers.0.b": 1234.51,
            "layers.1.a": 0.0012344600001,
            "layers.1.b": 0.99995,
            "layers.2.a": 0.000099999,
            "layers.2.b": 0.0001,
            "layers.3.a": 1.23446e-05,
            "layers.3.b": 1e-300,
            "layers.4.a": 0.0,
            "layers.5.a": 0.12345601,
            "layers.5.b": 0.12345602,
            "layers.6.a": 0.12345603,
        },
        {"layers.0.a": 0.0, "layers.0.b": 0.0},
        {"layers.0.a": 1.0},
    ],
    ids=["many", "zeros", "one"],
)
def test_scores_have_four_digits_and_exact_ranks(page, template, report_of, open_report, values):
    report = report_of(with_scores(template, values))
    open_report(page, report)
    for section in SECTIONS:
        go(page, f"#{section}")
    go(page, "#case")
    rows = whole_table(page, NAME)
    shown = dict(zip(column(rows, "group"), column(rows, "score (per token)"), strict=True))
    assert shown == {name: four(value) for name, value in values.items()}
    assert list(shown) == sorted(values, key=lambda name: -values[name])


def test_scatter_plot_shows_every_groups_divergence_against_its_score(
    page, swept, open_report, report_of, template
):
    """Each score is twice the divergence, but for the two highest, whose divergences swap."""
    open_case(swept, CASE)
    assert swept.locator("#case-check-chart").is_hidden()
    divergences = {name: g.importance / 2 for name, g in template.layer_sensitivity.items()}
    first, second = (ranked.name for ranked in template.sensitivity_ranking[:2])
    swap = {first: divergences[second], second: divergences[first]}
    checked = with_check(with_error_bars(template), (divergences | swap).values(), error=1e-9)
    report = report_of(checked)
    open_report(page, report, f"#case={template.case.case_id}")
    assert page.inner_text("#case-check-found").startswith("Spearman 0.9991 between the score")
    ranked = scores(report.manifests[template.case.case_id])
    kl = [(divergences | swap)[name + GROUP_SUFFIX] for name in ranked]
    rows = table(page, NAME)
    assert column(rows, "rank by KL") == ["2", "1", *(str(rank) for rank in range(3, 25))]
    shown = [f"{four(value)} ± 1e-09" for value in kl]
    assert column(rows, "measured KL (nats per token)") == shown
    found = {cell["label"] for cell in cells(page, "check")}
    assert found == {
        f"{name}: score {four(score)} per token, rank {rank}; measured KL {value} nats per token, "
        f"rank {by_kl}"
        for rank, ((name, score), value, by_kl) in enumerate(
            zip(ranked.items(), shown, column(rows, "rank by KL"), strict=True), start=1
        )
    }
    assert violations(page) == []


def test_case_that_was_not_checked_says_why_without_a_plot(page, open_report, report_of, template):
    report = report_of(replace(template, score_not_checked="it was too slow"))
    open_report(page, report, f"#case={template.case.case_id}")
    assert page.inner_text("#case-check-found") == "Not checked: it was too slow."
    assert page.locator("#case-check-chart").is_hidden()
