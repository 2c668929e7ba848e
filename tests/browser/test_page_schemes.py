"""The schemes section: a real run's table and charts, beside the manifests of the schemes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import spearmanr
from test_page_accessibility import violations

CASES = Path(__file__).resolve().parents[2] / "cases"
SCHEMES = ("fp8_autoquant_top50", "fp8_autoquant_full", "int4_fp8_autoquant_bits6")


@pytest.fixture(scope="session")
def derived(tmp_path_factory):
    """Three schemes of the embedded model, measured and not exported."""
    folder = tmp_path_factory.mktemp("derived")
    shutil.copytree(CASES, folder / "cases", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", "cases"),
            *("-k", "test_scheme", "--aq-device=cpu", "--aq-sizes=small"),
            *(f"--aq-schemes={','.join(SCHEMES)}", "--aq-report-dir", str(folder / "report")),
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "report" / "index.html"


@pytest.fixture(scope="session")
def schemes(derived):
    paths = sorted(derived.parent.rglob("scheme_manifest.json"))
    read = [json.loads(path.read_text()) for path in paths]
    return {manifest["scheme"]["name"]: manifest for manifest in read}


@pytest.fixture
def shown(page, derived, open_report):
    return open_report(page, derived, "#schemes")


def rows(page):
    found = page.locator("#section-schemes tbody tr").all()
    return {
        row.locator("td").first.inner_text(): row.locator("td").all_inner_texts() for row in found
    }


def marks(page, chart):
    script = "marks => marks.map(mark => mark.getAttribute('aria-label'))"
    return page.locator(f'#chart-{chart} path[aria-roledescription="point"]').evaluate_all(script)


def test_the_table_says_what_the_manifests_say(shown, schemes):
    found = rows(shown)
    assert set(found) == set(SCHEMES)
    for name, manifest in schemes.items():
        decided, measured = manifest["allocation"], manifest["measured"]
        quantized = sum(group["format"] is not None for group in manifest["groups"])
        assert found[name][2] == f"{quantized} of {len(manifest['groups'])}"
        assert found[name][4] == f"{decided['effective_bits']:.4g}"
        assert found[name][6] == f"{decided['score']:.4g}"
        assert found[name][7] == f"{measured['kl']:.4g}"
        assert found[name][10:] == ["not exported", "not tried"]


def test_it_says_how_alike_prediction_and_measurement_rank(shown, schemes):
    pairs = [(m["allocation"]["score"], m["measured"]["kl"]) for m in schemes.values()]
    expected = spearmanr(*zip(*pairs, strict=True)).statistic
    said = f"predicted score and measured KL {expected:.4f} over {len(SCHEMES)} schemes"
    assert said in shown.locator("#section-schemes").inner_text()


def test_every_scheme_is_a_point_that_says_its_numbers(shown, schemes):
    said = marks(shown, "schemes")
    assert len(said) == len(SCHEMES)
    for name, manifest in schemes.items():
        score, kl = manifest["allocation"]["score"], manifest["measured"]["kl"]
        wanted = (
            f"{name}: predicted score {score:.4g} per token, measured KL {kl:.4g} nats per token"
        )
        assert wanted in said


def test_the_best_at_every_budget_is_drawn_once_per_set_of_candidates(shown, schemes):
    sets = {tuple(manifest["scheme"]["candidates"]): manifest for manifest in schemes.values()}
    points = sum(len(manifest["frontier"]) for manifest in sets.values())
    assert len(marks(shown, "budgets")) == points


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(new_page, derived, open_report, scheme):
    page = open_report(new_page(color_scheme=scheme), derived, "#schemes")
    assert violations(page) == []


def test_other_reports_have_no_such_section(swept):
    assert swept.locator('nav a[href="#schemes"]').count() == 0
