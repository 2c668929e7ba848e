"""Set up and run, from a fresh clone with nothing but Python:

    python3 run.py sweep    measure the embedded model at every size, write reports/tmp
    python3 run.py test     lint, check types and import order, and test
    python3 run.py gate     compare the embedded model with its committed baselines

Creates .venv on first use, and installs again when pyproject.toml, setup.py or constraints.txt
change. Further arguments go to pytest: ``python3 run.py sweep -k wint4``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
INPUTS = ("pyproject.toml", "setup.py", "constraints.txt")
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
GATED = (
    "--aq-device=cpu",
    "--aq-sizes=small",
    "--aq-pairs=wfp8_afp8,wint4_aint8,wint8_afp16",
    "--aq-no-check-scores",  # the gate compares scores
    "--aq-no-whole-model-kl",
)
COMMANDS = {
    "sweep": (("pytest", "cases", "-q"),),
    "gate": (("pytest", "cases", "-q", *GATED, "--aq-baseline=reports/baseline"),),
    "test": (
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("lint-imports",),
        ("pytest", "-q", "-m", "not slow", "-n", "2", "--dist", "loadfile"),
    ),
}


def set_up() -> None:
    """Install the project and its pinned dependencies into .venv, once per set of pins."""
    wanted = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in INPUTS)).hexdigest()
    stamp = VENV / "autoquant-installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print("setting up .venv (first time: downloads torch)", flush=True)
    venv.create(VENV, with_pip=True)
    pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet"]
    run([*pip, "-c", "constraints.txt", "-e", ".[dev]"])
    stamp.write_text(wanted)


def run(command: list[str]) -> None:
    """Run a command in the project folder and stop with its exit status if it fails."""
    status = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603
    if status:
        sys.exit(status)


def main(arguments: list[str]) -> None:
    """Run one of the named command lines; extra arguments go to the last one, pytest."""
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(__doc__)
    here = sys.version_info[:2]
    if not OLDEST_PYTHON <= here <= NEWEST_PYTHON:
        oldest, newest, got = (".".join(map(str, v)) for v in (OLDEST_PYTHON, NEWEST_PYTHON, here))
        sys.exit(f"run.py needs Python {oldest} to {newest}, got {got}")
    set_up()
    *checks, last = COMMANDS[arguments[0]]
    for check in checks:
        run([str(BIN / check[0]), *check[1:]])
    run([str(BIN / last[0]), *last[1:], *arguments[1:]])


if __name__ == "__main__":
    main(sys.argv[1:])
