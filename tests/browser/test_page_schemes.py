"""The schemes section of a real run, compared with the manifests of its schemes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import results_of, structure_check
from page_reading import column, go, table, violations
from pytest_autoquant.manifests.records.outcomes import FailedCase
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_summary
from scipy.stats import spearmanr

CASES = Path(__file__).resolve().parents[2] / "cases"
SCHEMES = ("fp8_autoquant_top50", "fp8_autoquant_full", "int4_fp8_autoquant_bits6")


@pytest.fixture(scope="module")
def derived(tmp_path_factory):
    """The report of three schemes of the embedded model, measured and not exported."""
    folder = tmp_path_factory.mktemp("derived")
    shutil.copytree(CASES, folder / "cases", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", "cases"]
    options = ["--aq-device=cpu", "--aq-report-dir=report", "--aq-sizes=small"]
    done = subprocess.run(
        [*command, *options, "-k", "test_scheme", f"--aq-schemes={','.join(SCHEMES)}"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "report"


@pytest.fixture(scope="module")
def schemes(derived):
    read = [json.loads(p.read_text()) for p in derived.rglob("scheme_manifest.json")]
    return {manifest["scheme"]["name"]: manifest for manifest in read}


@pytest.fixture
def shown(page, derived, open_report):
    return open_report(page, derived / "index.html", "#schemes")


def labels(page, chart):
    script = "marks => marks.map(mark => mark.getAttribute('aria-label'))"
    return page.locator(f'#chart-{chart} path[aria-roledescription="point"]').evaluate_all(script)


@pytest.mark.slow
def test_table_and_points_show_the_numbers_of_the_manifests(shown, schemes):
    rows = shown.locator("table[data-name=schemes] tbody tr").all()
    found = {cells[0]: cells for cells in (r.locator("td").all_inner_texts() for r in rows)}
    assert set(found) == set(schemes) == set(SCHEMES)
    points = labels(shown, "schemes")
    assert len(points) == len(SCHEMES)
    for name, manifest in schemes.items():
        score, kl = f"{manifest['allocation']['score']:.4g}", f"{manifest['measured']['kl']:.4g}"
        quantized = sum(group["format"] is not None for group in manifest["groups"])
        assert found[name][2] == f"{quantized} of {len(manifest['groups'])}"
        assert found[name][4] == f"{manifest['allocation']['effective_bits']:.4g}"
        error = manifest["measured"]["standard_error"]
        assert found[name][6:8] == [score, f"{kl} ± {error:.2g}"]
        interaction, uniform = manifest["interaction"], manifest["uniform"]
        ratio, error = interaction["ratio"], interaction["standard_error"]
        assert found[name][8] == f"{ratio:.4g} ± {error:.2g}"
        verdict = {"better": "better than", "same": "is"}[uniform["verdict"]]
        assert found[name][9] == f"{verdict} {uniform['candidate']}"
        assert found[name][12:14] == ["not exported", "not tried"]
        assert re.fullmatch(r"[\d-]+ [\d:]+ UTC, took .* s", found[name][14])
        point = f"{name}: predicted score {score} per token, measured KL {kl} nats per token"
        assert point in points


@pytest.mark.slow
def test_sentence_gives_the_rank_correlation_of_prediction_and_measurement(shown, schemes):
    pairs = [(m["allocation"]["score"], m["measured"]["kl"]) for m in schemes.values()]
    expected = spearmanr(*zip(*pairs, strict=True)).statistic
    sentence = f"predicted score and measured KL {expected:.4f} over {len(SCHEMES)} schemes"
    assert sentence in shown.inner_text("#section-schemes")


@pytest.mark.slow
def test_budget_chart_has_each_frontier_once_per_set_of_candidates(shown, schemes):
    sets = {tuple(m["scheme"]["candidates"]): len(m["frontier"]) for m in schemes.values()}
    assert len(labels(shown, "budgets")) == sum(sets.values())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(new_page, derived, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), derived / "index.html", "#schemes")
    assert violations(page) == []


def test_report_without_schemes_has_no_such_section(swept):
    assert swept.locator('nav a[href="#schemes"]').count() == 0


def test_schemes_that_were_not_derived_are_in_their_section_alone(page, tmp_path, open_report):
    failed = FailedCase(case_id="toy/schemes/half/small", problem="export failed")
    write_summary(tmp_path, SessionResults(errors={failed.case_id: failed}))
    open_report(page, tmp_path / "index.html", "#schemes")
    row = page.locator('table[data-name="schemes-not-derived"] tbody tr')
    assert row.locator("td").all_inner_texts() == [failed.case_id, "failed", "export failed"]
    go(page, "#cases")
    assert failed.case_id not in page.inner_text("#section-cases")


def test_report_of_structure_cases_has_no_selector_and_no_chart(page, tmp_path, open_report):
    checks = (structure_check("wint8_afp16"), structure_check("wfp4_afp8"))
    write_summary(tmp_path, results_of(*checks))
    open_report(page, tmp_path / "index.html")
    grid = page.inner_text("#section-grid")
    assert "No case was measured; the table below says what can run." in grid
    assert "A score is" not in grid
    assert page.locator("#view:visible, #chart-grid:visible").count() == 0
    assert column(table(page, "what-can-run"), "pair") == ["wfp4_afp8", "wint8_afp16"]
