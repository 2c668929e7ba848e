"""What a measurement imports: processor seconds by step, with and without garbage collection.

    pytest benchmarks/bench_imports.py -s

``python -X importtime -c "import modelopt.torch.quantization"`` shows where they go.
"""

import json
import subprocess
import sys
from statistics import median

ROUNDS = 3
STEPS = (
    "torch",
    "transformers",
    "torch._dynamo.aot_compile",  # the first thing that modelopt.torch imports
    "modelopt.torch.quantization",
    "pytest_autoquant.scoring.runner",
)
PROGRAM = """
import gc, importlib, json, sys, time, warnings
from contextlib import nullcontext
from pytest_autoquant.phases import PhaseClock
warnings.simplefilter("ignore")
steps, is_ours = json.loads(sys.argv[1])
found = {}
with PhaseClock().importing() if is_ours else nullcontext():
    for step in steps:
        started = time.process_time()
        importlib.import_module(step)
        found[step] = time.process_time() - started
print(json.dumps(found | {"modules": len(sys.modules)}))
"""


def imported(is_ours):
    """Return processor seconds by step of one new process, and how many modules it has then."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([STEPS, is_ours])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_without_garbage_collection():
    imported(is_ours=True)  # compiles what is not compiled yet
    plain, ours = zip(*((imported(False), imported(True)) for _ in range(ROUNDS)), strict=True)
    sums = [median(sum(run[step] for step in STEPS) for run in runs) for runs in (plain, ours)]
    for step in STEPS:
        before, after = (median(run[step] for run in runs) for runs in (plain, ours))
        print(f"\n{step}: {before:.2f} s, without garbage collection {after:.2f} s", end="")
    ratios = [
        sum(a[step] for step in STEPS) / sum(b[step] for step in STEPS)
        for a, b in zip(ours, plain, strict=True)
    ]
    print(
        f"\nin all {sums[0]:.2f} s and {sums[1]:.2f} s, {median(ratios):.2f} times "
        f"({min(ratios):.2f} to {max(ratios):.2f}); {ours[0]['modules']} modules"
    )
