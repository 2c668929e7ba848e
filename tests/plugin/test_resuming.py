"""Resumed runs: what was measured on the same inputs stays, everything else is measured again."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_autoquant
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest

pytestmark = pytest.mark.slow

DATA = Path(pytest_autoquant.__file__).parent / "calibration" / "data"

PAIRS = ("wint8_afp16", "wint4_afp16")
CASES = [f"{pair}-{granularity}" for pair in PAIRS for granularity in ("default", "w_group64")]
DELETED, CORRUPT, KEPT = CASES[0], CASES[3], CASES[1:3]
SELECTION = (
    *("cases/test_sensitivity.py", "-rs", "--aq-device=cpu", "--aq-sizes=small"),
    *(f"--aq-pairs={','.join(PAIRS)},wfp4_afp8", "--aq-granularities=default,w_group64"),
    "--aq-captions=captions.txt",
)
BUILTIN = DATA / "captions.txt"
BLOCK = """
import pathlib, time

def pytest_runtest_call(item):
    if "[wint4_afp16-w_group64-small]" in item.name:
        pathlib.Path(__file__).with_name("reached").touch()
        time.sleep(60)
"""


def case_id(name):
    return f"tiny-qwen3-vl/{name.replace('-', '/')}/small/gradient"


def manifests(root):
    """Every manifest without what differs from run to run, by case."""
    found = {}
    for path in find_manifests(root):
        document = json.loads(path.read_text())
        del document["timing"], document["memory"], document["measured_at"]
        found[read_manifest(path).case.case_id] = document
    return found


def scores(root):
    return {
        case: {name: group["importance"] for name, group in document["layer_sensitivity"].items()}
        for case, document in manifests(root).items()
    }


def pictures(root):
    return {path.relative_to(root): path.read_text() for path in root.rglob("*.svg")}


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if "summary" not in path.name}


@dataclass(frozen=True)
class Resumed:
    """A resumed run and when its files were written, before and after."""

    run: object
    root: Path
    before: dict

    @property
    def summary(self):
        return json.loads((self.root / "summary.json").read_text())

    def is_untouched(self, name, *, drawn=True):
        """Whether the files of a case are as before; ``drawn`` tells whether it had a picture."""
        (path,) = (p for p in find_manifests(self.root) if self.of(p) == case_id(name))
        files = {file: stamp for file, stamp in self.before.items() if file.parent == path.parent}
        after = {f: f.stat().st_mtime_ns for f in path.parent.iterdir() if f in files or drawn}
        return len(files) == 3 + drawn and files == after

    def of(self, path):
        return read_manifest(path).case.case_id


class Desk:
    """One undisturbed run, and runs that resume from what it left."""

    def __init__(self, project):
        self.project = project
        builtin = [line for line in BUILTIN.read_text().splitlines() if line.strip()]
        self.captions = builtin[:16]
        self.write(self.captions)
        self.first = project.run(*SELECTION, "--aq-report-dir=first")
        self.root = project.folder / "first"

    def write(self, captions):
        (self.project.folder / "captions.txt").write_text("\n".join(captions))

    def resume(self, name, *arguments, captions=None, spoil=lambda root: None):
        root = Path(shutil.copytree(self.root, self.project.folder / name))
        spoil(root)
        self.write(captions or self.captions)
        before = stamps(root)
        run = self.project.run(*SELECTION, "--aq-resume", f"--aq-report-dir={name}", *arguments)
        return Resumed(run, root, before)


@pytest.fixture(scope="module")
def desk(new_project):
    return Desk(new_project("resume"))


def lose_two(root):
    for path in find_manifests(root):
        case = read_manifest(path).case.case_id
        if case == case_id(DELETED):
            path.unlink()
        elif case == case_id(CORRUPT):
            path.write_bytes(path.read_bytes()[:1000])


@pytest.fixture(scope="module", params=["-n0", "-n2"])
def resumed(desk, request):
    """Two manifests are gone or broken; the captions come in another order."""
    name = f"resumed{request.param}"
    return desk.resume(name, request.param, captions=desk.captions[::-1], spoil=lose_two)


def test_cases_measured_on_the_same_captions_in_any_order_are_not_touched(desk, resumed):
    assert desk.first.status == resumed.run.status == 0, resumed.run.output
    assert [name for name in CASES if resumed.is_untouched(name)] == KEPT


def test_a_deleted_and_a_corrupt_manifest_are_measured_again(desk, resumed):
    again, first = scores(resumed.root), scores(desk.root)
    assert again.keys() == first.keys() == {case_id(name) for name in CASES}
    for case, groups in first.items():
        assert again[case] == pytest.approx(groups, rel=1e-4)
        assert len(groups) == 24


def test_the_terminal_and_the_summary_say_what_was_kept(desk, resumed):
    counted = "4 measured, 0 aliases, 0 failed, 2 skipped (needs-cuda 2), 0 structure cases"
    assert f"\n{counted}, 2 kept from an earlier run\n" in resumed.run.output
    assert re.search(r"^=+ 2 passed, 4 skipped in ", resumed.run.output, re.MULTILINE)
    assert re.search(r"^SKIPPED \[2\] .*: kept: measured before on", resumed.run.output, re.M)
    assert resumed.summary["kept"] == sorted(map(case_id, KEPT))
    assert resumed.summary["reruns"] == {}
    assert resumed.summary["counts"]["kept"] == 2
    lines = {line["case_id"]: line for line in resumed.summary["cases"]}
    assert lines.keys() == {case_id(name) for name in CASES}
    first = json.loads((desk.root / "summary.json").read_text())
    for name in KEPT:
        assert lines[case_id(name)] in first["cases"]


def test_changed_inputs_are_measured_again_and_the_summary_says_which_changed(desk):
    captions = [*desk.captions[:-1], "two cats sleep on a chair"]
    changed = desk.resume("changed", captions=captions)
    assert changed.run.status == 0
    ids = sorted(map(case_id, CASES))
    assert [line["case_id"] for line in changed.summary["cases"]] == ids
    assert not any(changed.is_untouched(name) for name in CASES)
    hashes = [
        next(iter(manifests(root).values()))["dataset"]["sha256"][:16]
        for root in (desk.root, changed.root)
    ]
    reason = f"captions {hashes[0]} -> {hashes[1]}"
    assert f"\n  re-run    4  changed: {reason}\n" in changed.run.output
    assert changed.summary["reruns"] == {case_id(name): reason for name in CASES}
    assert list(changed.summary["reruns"]) == ids  # whatever the order of arrival
    assert (changed.summary["kept"], changed.summary["counts"]["kept"]) == ([], 0)


def test_another_budget_selects_anew_and_measures_nothing(desk):
    resumed = desk.resume("budget", "--aq-effective-bits=6")
    assert resumed.run.status == 0
    assert "  kept      4  selected anew: bit budget 10 -> 6\n" in resumed.run.output
    assert resumed.summary["kept"] == sorted(map(case_id, CASES))
    assert scores(resumed.root) == scores(desk.root)
    for document in manifests(resumed.root).values():
        state = document["autoquant_state"]
        assert state["constraints"]["effective_bits"] == 6
        assert state["is_satisfied"] is (document["quantization"]["effective_bits"] < 6)


def test_a_run_whose_controller_was_killed_is_completed_with_the_same_scores(desk):
    project, root = desk.project, desk.project.folder / "killed"
    conftest = project.folder / "conftest.py"
    conftest.write_text(BLOCK)
    desk.write(desk.captions)
    process = project.start(*SELECTION, "-n2", "--aq-report-dir=killed")
    try:
        until = time.monotonic() + 60
        while not (project.folder / "reached").exists() or len(find_manifests(root)) < 3:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.3)  # until the layer reports are written, too
        process.kill()
        assert process.wait(timeout=10) == -signal.SIGKILL
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        conftest.unlink()
    summary = json.loads((root / "summary.json").read_text())
    selected = [*CASES, "wfp4_afp8-default", "wfp4_afp8-w_group64"]
    assert (summary["cases"], summary["lost"]) == ([], sorted(map(case_id, selected)))
    left, undisturbed = manifests(root), manifests(desk.root)
    assert sorted(left) == sorted(map(case_id, CASES[:3]))
    before = stamps(root)
    run = project.run(*SELECTION, "--aq-resume", "--aq-report-dir=killed")
    again = Resumed(run, root, before)
    assert run.status == 0, run.output
    # Pictures come after the last case, which the killed run did not reach.
    assert [name for name in CASES if again.is_untouched(name, drawn=False)] == CASES[:3]
    assert again.summary["kept"] == sorted(map(case_id, CASES[:3]))
    assert manifests(root) == undisturbed
    assert pictures(root) == pictures(desk.root)
    assert len(pictures(root)) == 4 + 1
    page = (root / "index.html").read_text()
    assert sorted(re.findall(r'"id":"([^"]+)"', page)) == sorted(map(case_id, CASES))
