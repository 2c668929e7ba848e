"""The same results however the run is spread, and nothing finished is lost with a worker."""

import json
from textwrap import dedent

import pytest

from harness.manifest import read_manifest

KILLED = "test_sensitivity[wint4_afp16-default-small]"
KILLER = f"""
    import os, signal
    import pytest

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        yield
        if item.name == "{KILLED}":
            os.kill(os.getpid(), signal.SIGKILL)
"""


def contents(root):
    """Every file below a report root, without what differs from run to run."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): comparable(path) for path in files}


def comparable(path):
    if not path.name.endswith("_quant_manifest.json"):
        return path.read_text()
    manifest = json.loads(path.read_text())
    del manifest["timing"], manifest["memory"]
    return manifest


@pytest.mark.parametrize("spread", [("-p", "no:xdist"), ("-n2",)], ids=["no xdist", "n2"])
def test_every_file_is_the_same_as_with_n0(sweep, sweep_arguments, spawn, spread):
    other = spawn(*spread, *sweep_arguments)
    assert other.status == sweep.status == 0
    here, there = contents(sweep.root), contents(other.root)
    assert len(here) == 3 * 7 + 2
    assert there.keys() == here.keys()
    for name, content in here.items():
        assert there[name] == content, name


def test_a_killed_worker_takes_only_its_own_case_with_it(spawn, tmp_path):
    (tmp_path / "conftest.py").write_text(dedent(KILLER))
    run = spawn(
        *("cases/test_sensitivity.py", "-n1", "--max-worker-restart=0", "--aq-device=cpu"),
        *("--aq-pairs=wint8_afp16,wint4_afp16", "--aq-granularities=default,w_group64"),
        *("--aq-sizes=small",),
    )
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert f"crashed while running 'cases/test_sensitivity.py::{KILLED}'" in run.output
    finished = [read_manifest(path).case for path in run.root.rglob("*_quant_manifest.json")]
    assert {(case.pair, case.granularity, case.status) for case in finished} == {
        ("wint8_afp16", "default", "measured"),
        ("wint8_afp16", "w_group64", "measured"),
    }
    summary = json.loads((run.root / "summary.json").read_text())
    assert {line["case_id"] for line in summary["cases"]} == {case.case_id for case in finished}
