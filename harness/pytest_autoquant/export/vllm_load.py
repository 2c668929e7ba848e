"""Load a checkpoint in vLLM, in a process of its own with a time limit."""

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

#: Time limit of a load, in seconds.
TIME_LIMIT = 600.0

#: Longest text of vLLM's that is kept, in characters.
_TEXT_LENGTH = 500

_PROMPT = "A photo of"

_ANSWER = "GENERATED "

_SCRIPT = f"""
import sys
from vllm import LLM, SamplingParams
model = LLM(model=sys.argv[1], max_model_len=64, enforce_eager=True, gpu_memory_utilization=0.5)
answers = model.generate([sys.argv[2]], SamplingParams(max_tokens=8, temperature=0.0))
print("{_ANSWER}" + repr(answers[0].outputs[0].text))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """The outcome of loading a checkpoint.

    Attributes:
        text: vLLM's version and what it generated, or why it did not.
    """

    outcome: Literal["loaded", "failed", "not tried"]
    text: str


#: The result where nobody asked for a load.
NOT_ASKED = LoadResult(outcome="not tried", text="loading in vLLM was not asked for")


def load_in_vllm(folder: Path, *, time_limit: float = TIME_LIMIT) -> LoadResult:
    """Load a checkpoint and generate a few tokens.

    Args:
        time_limit: seconds after which the process and everything that it started are killed.
    """
    try:
        release = version("vllm")
    except PackageNotFoundError:
        return LoadResult(outcome="not tried", text="vLLM is not installed")
    # -P keeps modules in the working directory from being imported in place of vLLM's.
    command = [sys.executable, "-P", "-c", _SCRIPT, str(folder), _PROMPT]
    result = _run(command, time_limit)
    return LoadResult(outcome=result.outcome, text=f"vLLM {release} {result.text}")


def _run(command: list[str], time_limit: float) -> LoadResult:
    """Run a command in a process group of its own and kill the group at the end."""
    process = subprocess.Popen(  # noqa: S603 - our own script
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        return LoadResult(outcome="failed", text=f"did not finish within {time_limit:g} s")
    finally:
        with suppress(ProcessLookupError):  # vLLM's engine is another process of the group
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return _result(process.returncode, output, errors)


def _result(status: int, output: str, errors: str) -> LoadResult:
    answers = [line for line in output.splitlines() if line.startswith(_ANSWER)]
    if status == 0 and answers:
        answer = one_line(answers[-1].removeprefix(_ANSWER), _TEXT_LENGTH)
        return LoadResult(outcome="loaded", text=f"generated {answer}")
    last = (errors.strip().splitlines() or [f"exit status {status}"])[-1]
    return LoadResult(outcome="failed", text=f"failed: {one_line(last, _TEXT_LENGTH)}")
