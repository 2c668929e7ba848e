"""Loading a checkpoint in vLLM, where it is installed: its own process, with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pytest_autoquant.text import one_line

SECONDS = 600
_MOST_WORDS = 500
_PROMPT = "A photo of"

_LOAD = """
import sys
from vllm import LLM, SamplingParams
model = LLM(model=sys.argv[1], max_model_len=64, enforce_eager=True, gpu_memory_utilization=0.5)
found = model.generate([sys.argv[2]], SamplingParams(max_tokens=8, temperature=0.0))
print("GENERATED", repr(found[0].outputs[0].text))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What became of it; ``text`` is the version and what was generated, or why not."""

    outcome: Literal["loaded", "failed", "not tried"]
    text: str


def load_in_vllm(folder: Path, seconds: float = SECONDS) -> Load:
    """Load a checkpoint and generate a few tokens; nothing is claimed where vLLM is not there."""
    try:
        release = version("vllm")
    except PackageNotFoundError:
        return Load(outcome="not tried", text="vLLM is not installed here")
    command = [sys.executable, "-c", _LOAD, str(folder), _PROMPT]
    process = subprocess.Popen(  # noqa: S603 - our own script
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output, complaints = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Load(outcome="failed", text=f"vLLM {release}: nothing after {seconds:g} s")
    finally:
        with suppress(ProcessLookupError):  # its engine is a process of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    generated = [line for line in output.splitlines() if line.startswith("GENERATED ")]
    if process.returncode == 0 and generated:
        said = one_line(generated[-1].removeprefix("GENERATED "), _MOST_WORDS)
        return Load(outcome="loaded", text=f"vLLM {release} generated {said}")
    last = (complaints.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    return Load(outcome="failed", text=f"vLLM {release}: {one_line(last, _MOST_WORDS)}")
