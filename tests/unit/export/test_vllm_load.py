"""The process that loads a checkpoint: its answer, its time limit, its end.

The interpreter finds a package ``vllm`` of this test in place of vLLM, so these tests are about the
handling of the process, not about vLLM.
"""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
from pytest_autoquant.export.vllm_load import load_in_vllm

LOAD = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from pytest_autoquant.export.vllm_load import load_in_vllm
print(json.dumps(asdict(load_in_vllm(Path(sys.argv[1]), time_limit=float(sys.argv[2])))))
"""
PACKAGE = """
import os, signal, subprocess, sys, time

class SamplingParams:
    def __init__(self, max_tokens, temperature):
        pass

class Answer:
    def __init__(self, text):
        self.text, self.outputs = text, [self]

class LLM:
    def __init__(self, model, **options):
        {loading}

    def generate(self, prompts, params):
        return [Answer({answer!r})]
"""


@pytest.fixture
def load(tmp_path):
    """Load a checkpoint with a package ``vllm`` that runs a statement while it loads."""
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    metadata = site / "vllm-9.8.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.8.7\n")

    def run(loading="pass", *, answer=" of a dog", time_limit=20):
        package = dedent(PACKAGE).format(loading=loading, answer=answer)
        (site / "vllm" / "__init__.py").write_text(package, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path), str(time_limit)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        result = json.loads(done.stdout)
        return result["outcome"], result["text"]

    return run


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_nothing_is_tried_without_vllm(tmp_path):
    result = load_in_vllm(tmp_path)
    assert (result.outcome, result.text) == ("not tried", "vLLM is not installed")


@pytest.mark.parametrize(
    ("loading", "outcome", "text"),
    [
        (
            "print('GENERATED early'); print('x', file=sys.stderr)",
            "loaded",
            "generated ' of a dog'",
        ),
        ("raise ValueError('missing:\\nlm_head')", "failed", "failed: lm_head"),
        ("os._exit(3)", "failed", "failed: exit status 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "failed", "failed: exit status -11"),
        (
            "sys.stderr.buffer.write(b'bad \\xff'); sys.exit(1)",
            "failed",
            "failed: bad \N{REPLACEMENT CHARACTER}",
        ),
    ],
)
def test_outcome_is_the_answer_or_the_last_line_of_the_errors(load, loading, outcome, text):
    assert load(loading) == (outcome, f"vLLM 9.8.7 {text}")


def test_answer_is_one_printable_line_of_limited_length(load):
    outcome, text = load(answer="\n\x1b[2J" + "x" * 2000)
    assert outcome == "loaded"
    assert text.startswith(r"vLLM 9.8.7 generated '\n\x1b[2Jxxx")
    assert text.isprintable()
    assert len(text) < 600


def test_module_in_the_working_directory_is_not_imported(load, tmp_path):
    (tmp_path / "vllm.py").write_text("raise ImportError('shadowed')")
    assert load() == ("loaded", "vLLM 9.8.7 generated ' of a dog'")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_process_that_hangs_is_killed_with_everything_it_started(load, tmp_path):
    pids = tmp_path / "pids"
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    write = f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')"
    outcome, text = load(f"child = {child}; {write}; time.sleep(600)", time_limit=3)
    assert (outcome, text) == ("failed", "vLLM 9.8.7 did not finish within 3 s")
    assert len(pids.read_text().split()) == 2
    for pid in pids.read_text().split():
        assert has_ended(int(pid))


def has_ended(pid):
    """Wait until a process is gone, or dead and not collected yet by its parent."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False
