"""A worker that dies and is not replaced."""

import json
from textwrap import dedent

import pytest
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest

pytestmark = pytest.mark.slow

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
    page = (run.root / "index.html").read_text()
    lost = f"tiny-qwen3-vl/{KILLED[17:-7].replace('-', '/')}/small/gradient"
    assert f"<code>{lost}</code>: lost, was to run and sent no outcome" in page
    assert all(f'"id":"{case.case_id}"' in page for case in finished)
    assert (run.root / "grid-tiny-qwen3-vl-small.svg").is_file()
