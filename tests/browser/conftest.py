"""A real Chromium, the page of a sweep, and reports made for single tests."""

import json
import math
import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import pytest
from builders import structure_check, with_case_names
from page_reading import go, settle
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.layout import MANIFEST_SUFFIX, find_manifests
from pytest_autoquant.manifests.records.outcomes import SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import RankedGroup, read_manifest
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_case, write_summary

from benchmarks import generated

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")

#: Seconds after which an expected change of the page counts as missing.
SECONDS = 15

GRANULARITIES = ("default", "w_group64", "w_per_tensor", "recipe_match_channel_token")
SKIPPED = "wnvfp4_afp16"
#: By how much scores of a size differ from the measured ones, and from group to group.
SIZES = {"small": 0.0, "medium": 0.05, "large": 0.2}


@dataclass(frozen=True)
class Report:
    """A report folder, its manifests read as plain JSON."""

    root: Path

    @property
    def page(self):
        return self.root / "index.html"

    @cached_property
    def manifests(self):
        """Every manifest by its case."""
        paths = sorted(self.root.rglob(f"*{MANIFEST_SUFFIX}"))
        read = [json.loads(path.read_text()) for path in paths]
        return {manifest["case"]["case_id"]: manifest for manifest in read}

    @cached_property
    def summary(self):
        return json.loads((self.root / "summary.json").read_text())

    def of_size(self, size, *statuses):
        """Return a size's manifests, of some statuses only if any is given."""
        return {
            case_id: manifest
            for case_id, manifest in self.manifests.items()
            if manifest["case"]["size"] == size
            if not statuses or manifest["case"]["status"] in statuses
        }


@pytest.fixture(scope="session")
def browser():
    """The installed Chromium; without one, tests fail in CI and are skipped elsewhere."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        missing = "chromium is not installed: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS])
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser):
    """Make a page that must log no message and request nothing but the files it navigates to."""
    contexts, wrong = [], []

    def watch(page):
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda said: wrong.append(f"{said.type}: {said.text}"))
        page.on("request", lambda asked: wrong.extend(_unwanted(asked)))

    def make(**options):
        context = browser.new_context(offline=True, accept_downloads=True, **options)
        context.set_default_timeout(SECONDS * 1000)
        context.on("page", watch)
        contexts.append(context)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


def _unwanted(request):
    """Yield the address unless it is a navigation to a file or a download of the page's own."""
    is_ours = request.url.startswith(("file://", "blob:null", "blob:file:"))
    if not (is_ours and request.is_navigation_request()):
        yield f"request: {request.url[:200]}"


@pytest.fixture
def page(new_page):
    """An empty page; see ``new_page``."""
    return new_page()


@pytest.fixture
def swept(page, sweep):
    """The sweep's page, open."""
    return opened(page, sweep)


@pytest.fixture(scope="session")
def open_report():
    """Open a report in a page and wait until its first section is drawn."""
    return opened


def opened(page, report, address=""):
    path = report.page if isinstance(report, Report) else report
    page.goto(path.as_uri())
    settle(page)
    if address:
        go(page, address)
    return page


def _at_size(manifest, size, step):
    """Return a manifest of another size: the scores grow by up to ``4 * step``, group by group."""
    groups = {
        name: replace(
            group,
            importance=group.importance * (1 + step * (index * 7 % 5)),
            caption_scores=None,
        )
        for index, (name, group) in enumerate(manifest.layer_sensitivity.items())
    }
    ranked = sorted(groups, key=lambda name: -groups[name].importance)
    selected = {layer.group for layer in manifest.layers.values() if layer.selected}
    alias_of = manifest.case.alias_of and manifest.case.alias_of.replace("/small/", f"/{size}/")
    named = with_case_names(manifest, size=size, alias_of=alias_of)
    return replace(
        named,
        dataset=replace(named.dataset, sha256=size),
        layer_sensitivity={
            name: replace(group, scores=(group.importance, 0.0), rank=ranked.index(name) + 1)
            for name, group in groups.items()
        },
        sensitivity_ranking=tuple(
            RankedGroup(name=name, importance=groups[name].importance) for name in ranked
        ),
        autoquant_state=replace(
            manifest.autoquant_state,
            total_score=math.fsum(group.importance for group in groups.values()),
            score=math.fsum(groups[name].importance for name in groups if name in selected),
        ),
    )


def _skipped(pair, granularity, size):
    status = "needs-cuda" if granularity in ("default", "w_group64") else "unsupported"
    return SkippedCase(
        case_id=f"tiny-qwen3-vl/{pair}/{granularity}/{size}/gradient",
        status=status,
        reason="AssertionError: no CUDA",
        effective_bits=4.5,
    )


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """Three blessed pairs at every size, and one that was skipped.

    The scores of size small are measured; those of the other sizes are made from them.
    """
    root, results = tmp_path_factory.mktemp("sweep"), SessionResults(command="pytest cases")
    blessed = map(read_manifest, find_manifests(generated.BLESSED))
    measured = [manifest for manifest in blessed if manifest.case.granularity in GRANULARITIES]
    for size, step in SIZES.items():
        for manifest in measured:
            made = _at_size(manifest, size, step)
            write_case(root, made)
            results.add(case_result_of(made))
        for granularity in GRANULARITIES:
            results.add(_skipped(SKIPPED, granularity, size))
    pairs = {manifest.case.pair for manifest in measured} | {SKIPPED}
    for pair, granularity in product(sorted(pairs), GRANULARITIES):
        results.structures[pair, granularity] = structure_check(pair, granularity)
    write_summary(root, results)
    return Report(root)


@pytest.fixture(scope="session")
def template():
    """A blessed manifest, to make others from."""
    return read_manifest(find_manifests(generated.BLESSED)[0])


@pytest.fixture(scope="session")
def sweep_manifests():
    """The blessed manifests of measured cases."""
    blessed = map(read_manifest, find_manifests(generated.BLESSED))
    return [manifest for manifest in blessed if manifest.case.status == "measured"]


@pytest.fixture
def report_of(tmp_path):
    """Write manifests and outcomes without one, and rebuild the report."""

    def make(*manifests, **outcomes):
        if outcomes:
            write_summary(tmp_path, SessionResults(**outcomes))
        for manifest in manifests:
            write_case(tmp_path, manifest)
        rebuild(tmp_path)
        return Report(tmp_path)

    return make


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """The page of 600 cases of 250 groups, without their manifests, which take half a minute."""
    results = SessionResults()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "write_case", lambda _, made: results.add(case_result_of(made)))
        generated.write_manifests(None, cases=600, groups=250)
    root = tmp_path_factory.mktemp("large")
    write_summary(root, results)
    return Report(root)
