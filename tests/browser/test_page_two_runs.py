"""The page of two runs: which cases drifted, and each case's two sides."""

import pytest
from builders import with_case_names, with_scores
from page_reading import column, drawing, go, sort_by, table
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest
from pytest_autoquant.reports.run_comparison import compare_runs
from pytest_autoquant.reports.write import write_case, write_comparison

BEFORE = {"layers.0.a": 3.0, "layers.0.b": 2.0, "layers.1.a": 1.0}
AFTER = {"layers.0.a": 3.0, "layers.0.b": 1.0, "layers.1.a": 2.0}
#: Factors of each case's scores in both runs; with None, one score is not finite.
FACTORS = {"a": (1.0, 1.1), "b": (1.0, None), "c": (1.0, 11.0), "d": (1.0, 3.0), "e": (1.0,)}


def scaled(scores, factor):
    if factor is None:
        return {**scores, "layers.0.a": None}
    return {name: score * factor for name, score in scores.items()}


@pytest.fixture
def compared(tmp_path, template):
    """The page of two runs, of which only the first has case ``e``."""
    for side, (folder, scores) in enumerate({"first": BEFORE, "second": AFTER}.items()):
        for name, factors in FACTORS.items():
            if side < len(factors):
                made = with_scores(template, scaled(scores, factors[side]))
                write_case(tmp_path / folder, with_case_names(made, granularity=name, size="small"))
    write_comparison(
        tmp_path / "compared.html", compare_runs(tmp_path / "first", tmp_path / "second")
    )
    return tmp_path / "compared.html"


def granularities(page):
    return "".join(case.split("/")[2] for case in column(table(page, "runs"), "case"))


def test_cases_in_both_runs_are_listed_and_infinite_drift_sorts_last(page, compared, open_report):
    open_report(page, compared, "#compare")
    assert "4 cases in both runs, 1 only in A, 0 only in B." in page.inner_text("#section-compare")
    for direction, order in (("ascending", "adcb"), ("descending", "bcda")):
        sort_by(page, "runs", "total score drift", direction)
        assert granularities(page) == order
    assert column(table(page, "runs"), "total score drift (%)")[1:] == [
        "+1000.000",
        "+200.000",
        "+10.000",
    ]
    assert set(column(table(page, "runs"), "Spearman rank correlation")) == {"0.5000"}


@pytest.mark.slow
def test_case_opens_the_comparison_of_its_two_sides(page, compared, open_report):
    open_report(page, compared, "#compare")
    page.locator("#section-compare .dt-search input").first.fill("/c/")
    case_id = page.inner_text('table[data-name="runs"] tbody a')
    with drawing(page):
        page.click('table[data-name="runs"] tbody a')
    sides = [page.locator(f"{side} option:checked").inner_text() for side in ("#case-a", "#case-b")]
    assert sides == [f"A: {case_id}", f"B: {case_id}"]
    assert "Spearman rank correlation 0.5000;" in page.inner_text("#correlation")
    assert {row[0]: row[1:4] for row in table(page, "movers")[1:]} == {
        "layers.0.a": ["1", "1", "0"],
        "layers.0.b": ["2", "3", "+1"],
        "layers.1.a": ["3", "2", "-1"],
    }
    for side, folder in zip(sides, ("first", "second"), strict=True):
        go(page, "#case")
        with drawing(page):
            page.select_option("#case-choice", label=side)
        href = page.locator("#case-facts a", has_text="manifest").get_attribute("href")
        assert href.startswith(f"{folder}/")
        assert read_manifest(compared.parent / href).case.case_id == case_id


def test_comparison_opens_with_run_a_beside_the_same_case_of_run_b(page, compared, open_report):
    open_report(page, compared, "#compare")
    sides = [page.locator(f"{side} option:checked").inner_text() for side in ("#case-a", "#case-b")]
    assert sides == ["A: " + sides[1].removeprefix("B: "), "B: " + sides[0].removeprefix("A: ")]
