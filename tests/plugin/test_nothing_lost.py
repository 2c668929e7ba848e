"""Whatever ends a run early, what was finished is whole and what was not is named."""

import json
import os
import re
import signal
import time
from pathlib import Path
from textwrap import dedent

import pytest
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest
from pytest_autoquant.reports.ownership import marked

pytestmark = pytest.mark.slow

SELECTION = ("cases/test_sensitivity.py", "--aq-device=cpu", "--aq-sizes=small")
PAIRS = ("wint8_afp16", "wint4_afp16")
GRANULARITIES = ("default", "w_per_tensor", "w_group64")
GRID = (f"--aq-pairs={','.join(PAIRS)}", f"--aq-granularities={','.join(GRANULARITIES)}")
CASES = [f"{pair}-{granularity}" for pair in PAIRS for granularity in GRANULARITIES]
CHOSEN = CASES[4]
EVENT = """
    import os, pathlib, resource, signal, time
    import pytest

    HERE = pathlib.Path(__file__).parent

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        with (HERE / "calls.txt").open("a") as calls:
            calls.write(item.name + chr(10))
        if "[{chosen}-small]" in item.name:
            {event}
        return (yield)
"""
INTERRUPT = """
    def interrupt(handle):
        os.fsync = os.sync_
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
"""


def case_id(name):
    return f"tiny-qwen3-vl/{name.replace('-', '/')}/small/gradient"


def ids(names):
    return sorted(map(case_id, names))


def manifest_file(root, name):
    pair, granularity = name.split("-")
    weight, activation = re.fullmatch("w(.+)_a(.+)", pair).groups()
    folder = Path("tiny-qwen3-vl", f"weight-{weight}-act-{activation}", granularity, "small")
    file = f"{pair}_autoquant_lm_quant_manifest.json"
    return root / folder / file


def finished(root):
    """Every manifest, each read whole, by case."""
    return {m.case.case_id: m for m in map(read_manifest, find_manifests(root))}


def summary_of(run):
    return json.loads((run.root / "summary.json").read_text())


@pytest.fixture
def start(new_project):
    """Start a run in which something happens when the chosen case starts its call."""

    def run(event, *arguments, more=""):
        project = new_project("lost")
        conftest = dedent(EVENT).format(chosen=CHOSEN, event=event) + dedent(more)
        (project.folder / "conftest.py").write_text(conftest)
        return project, project.start(*SELECTION, *GRID, *arguments)

    return run


def calls(project):
    return (project.folder / "calls.txt").read_text().split()


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)


def test_a_killed_worker_loses_only_the_case_that_it_was_measuring(start):
    project, process = start("os.kill(os.getpid(), signal.SIGKILL)", "-n2")
    run = project.finished(process)
    others = [name for name in CASES if name != CHOSEN]
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert sorted(calls(project)) == sorted(f"test_sensitivity[{name}-small]" for name in CASES)
    assert sorted(finished(run.root)) == ids(others)
    assert {m.case.status for m in finished(run.root).values()} == {"measured"}
    summary = summary_of(run)
    assert summary["lost"] == [case_id(CHOSEN)]
    assert (summary["counts"]["measured"], summary["counts"]["lost"]) == (5, 1)
    assert [line["case_id"] for line in summary["cases"]] == ids(others)
    assert re.search(r"^5 measured, 0 aliases, .*, 1 lost$", run.output, re.MULTILINE)
    assert f"  lost   {case_id(CHOSEN)}: was to run and sent no outcome" in run.output
    node_id = f"cases/test_sensitivity.py::test_sensitivity[{CHOSEN}-small]"
    assert f"crashed while running '{node_id}'" in run.output
    assert "replacing crashed worker" in run.output
    assert f"| `{case_id(CHOSEN)}`" in (run.root / "summary.md").read_text()


def check_interrupted(run, done):
    """The summary holds what is on disk and names the others as lost."""
    assert run.status == pytest.ExitCode.INTERRUPTED
    assert sorted(finished(run.root)) == ids(done)
    summary, lost = summary_of(run), [name for name in CASES if name not in done]
    assert [line["case_id"] for line in summary["cases"]] == ids(done)
    assert summary["lost"] == ids(lost)
    page = (run.root / "index.html").read_text()
    assert sorted(re.findall(r'"id":"([^"]+)"', page)) == ids(done)
    assert sorted(re.findall(r"<code>(\S+)</code>: lost, was", page)) == ids(lost)
    for name in lost:
        assert f"  lost   {case_id(name)}: was to run and sent no outcome" in run.output
    assert re.search(rf"^{len(done)} measured, .*, {len(lost)} lost$", run.output, re.MULTILINE)


def test_ctrl_c_keeps_what_both_workers_finished_and_names_the_rest(start):
    project, process = start("(HERE / 'reached').touch(); time.sleep(60)", "-n2")
    root = project.folder / "reports" / "tmp"
    wait_for(project.folder / "reached")
    for name in CASES[:4]:
        wait_for(manifest_file(root, name).with_name("layer-sensitivity-report.json"))
    time.sleep(0.3)  # until the controller waits for the next report
    os.killpg(process.pid, signal.SIGINT)
    check_interrupted(project.finished(process), CASES[:4])


def test_ctrl_c_while_a_manifest_is_written_loses_that_case(start):
    event = "os.fsync, os.sync_ = interrupt, os.fsync"
    project, process = start(event, "-n0", more=INTERRUPT)
    check_interrupted(project.finished(process), CASES[:4])


def test_stopping_at_the_first_failure_names_the_cases_that_did_not_run(start):
    project, process = start("yield; pytest.fail('on purpose')", "-x")
    run = project.finished(process)
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert sorted(finished(run.root)) == ids(CASES[:5])
    assert summary_of(run)["lost"] == [case_id(CASES[5])]
    assert f"  lost   {case_id(CASES[5])}: was to run and sent no outcome" in run.output
    assert re.search(r"^=+ 1 failed, 4 passed in ", run.output, re.MULTILINE)


def test_a_disk_that_fills_up_fails_the_run_and_names_what_is_not_written(start):
    # No file may outgrow 16 KiB from here on: a manifest does, a summary of six cases does not.
    project, process = start("resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))", "-n0")
    page = project.folder / "reports" / "tmp" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(marked("of an earlier run"))
    run = project.finished(process)
    assert run.status == pytest.ExitCode.TESTS_FAILED
    written = finished(run.root)
    assert sorted(written) == ids(CASES[:4])
    missing = [manifest_file(run.root, name) for name in CASES[4:]]
    for path in missing:
        assert f"NOT WRITTEN: {path}: cannot be written: File too large" in run.output
    assert [path for path in run.root.rglob(".*") if path.is_file()] == []
    assert len(summary_of(run)["write_errors"]) == 2
    assert (run.root / "summary.md").read_text().count("| not written") == 2
    assert f"NOT WRITTEN: {page}: cannot be written: File too large" in run.output
    assert not page.exists()  # rather none than that of an earlier run
    assert "Traceback" not in run.output
    assert "INTERNALERROR" not in run.output
    assert "wrote 4 manifests and layer reports under reports/tmp" in run.output
