"""Loading in vLLM: nothing is claimed where it is not there; a stand-in shows what else happens."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import dedent

import pytest
from pytest_autoquant.export.vllm_load import load_in_vllm

REPOSITORY = Path(__file__).parents[3]
TRY = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from pytest_autoquant.export.vllm_load import load_in_vllm
print(json.dumps(asdict(load_in_vllm(Path(sys.argv[1]), seconds=float(sys.argv[2])))))
"""
VLLM = """
import sys

class SamplingParams:
    def __init__(self, **given):
        assert given == {{"max_tokens": 8, "temperature": 0.0}}

class Text:
    def __init__(self, text):
        self.text = text
        self.outputs = [self]

class LLM:
    def __init__(self, model, **given):
        self.model = model
        {loading}

    def generate(self, prompts, params):
        assert isinstance(params, SamplingParams)
        return [Text(prompt + {words}) for prompt in prompts]
"""


def has_vllm():
    try:
        return bool(version("vllm"))
    except PackageNotFoundError:
        return False


@pytest.fixture
def tried(tmp_path):
    """Load a checkpoint with a vLLM of our own making: a module and its installed metadata."""

    def run(loading="pass", words='" of a dog"', *, seconds=20, module=None):
        site = tmp_path / "site"
        (site / "vllm").mkdir(parents=True)
        text = dedent(VLLM).format(loading=loading, words=words) if module is None else module
        (site / "vllm" / "__init__.py").write_text(text, encoding="utf-8")
        info = site / "vllm-9.8.7.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.8.7\n")
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", TRY, str(folder), str(seconds)],
            env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return found["outcome"], found["text"]

    return run


@pytest.mark.skipif(has_vllm(), reason="vLLM is installed here")
def test_without_vllm_nothing_is_tried_or_claimed(tmp_path):
    found = load_in_vllm(tmp_path)
    assert (found.outcome, found.text) == ("not tried", "vLLM is not installed here")


def test_what_was_generated_is_told_with_the_version(tried):
    assert tried() == ("loaded", "vLLM 9.8.7 generated 'A photo of of a dog'")


def test_the_checkpoints_folder_is_what_is_loaded(tried):
    outcome, text = tried(words='" in " + self.model.rpartition("/")[2]')
    assert (outcome, text) == ("loaded", "vLLM 9.8.7 generated 'A photo of in checkpoint'")


def test_what_is_generated_stays_on_one_printable_line(tried):
    outcome, text = tried(words=r'"\n\x1b[2J" + "x" * 2000')
    assert outcome == "loaded"
    assert text.startswith(r"vLLM 9.8.7 generated 'A photo of\n\x1b[2Jxxx")
    assert text.isprintable()
    assert len(text) < 600


def test_other_output_around_the_answer_does_not_matter(tried):
    loading = 'print("INFO GENERATED nothing"); print("warn", file=sys.stderr)'
    assert tried(loading) == ("loaded", "vLLM 9.8.7 generated 'A photo of of a dog'")


def test_an_exception_is_told_in_its_last_line(tried):
    loading = 'raise ValueError("these are missing:\\nlm_head, norm")'
    assert tried(loading) == ("failed", "vLLM 9.8.7: lm_head, norm")


def test_an_exit_without_a_word_is_told_by_its_status(tried):
    assert tried("import os; os._exit(3)") == ("failed", "vLLM 9.8.7: exit status 3")


def test_a_crash_is_told_by_its_signal(tried):
    loading = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert tried(loading) == ("failed", "vLLM 9.8.7: exit status -11")


def test_an_end_without_an_answer_is_a_failure(tried):
    assert tried("sys.exit(0)") == ("failed", "vLLM 9.8.7: exit status 0")


def test_one_that_hangs_is_ended_at_the_limit(tried):
    started = time.monotonic()
    outcome, text = tried("import time; time.sleep(60)", seconds=1.5)
    assert (outcome, text) == ("failed", "vLLM 9.8.7: nothing after 1.5 s")
    assert time.monotonic() - started < 20


def test_metadata_without_a_module_is_a_failure_in_its_own_words(tried):
    outcome, text = tried(module="raise ImportError('libcuda.so.1: cannot open')")
    assert (outcome, text) == ("failed", "vLLM 9.8.7: ImportError: libcuda.so.1: cannot open")


def test_output_that_is_no_text_is_no_traceback(tried):
    outcome, text = tried(r'sys.stderr.buffer.write(b"bad \xff\xfe\n"); sys.exit(1)')
    assert outcome == "failed"
    assert text.startswith("vLLM 9.8.7: bad ")


def test_what_a_hanging_one_started_is_ended_as_well(tried, tmp_path):
    beat = tmp_path / "beat"
    start = f"subprocess.Popen([sys.executable, {str(tmp_path / 'child.py')!r}])"
    loading = f"import subprocess, time; {start}; time.sleep(60)"
    (tmp_path / "child.py").write_text(
        "import os, time\n"
        "for _ in range(100):\n"
        f"    open({str(beat)!r}, 'a').write('.')\n"
        "    time.sleep(0.1)\n"
    )
    tried(loading, seconds=2)
    assert beat.stat().st_size > 0
    time.sleep(0.3)
    before = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == before
