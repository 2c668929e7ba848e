"""Time, memory and page size of ``aq-harness render`` on a grid of 600 cases with 250 groups each.

    pytest benchmarks/bench_render.py -s

Nothing but the manifests is there when it starts, so every report and picture is drawn anew.
"""

import resource
import subprocess
import sys
import time

import pytest
from generated import write_manifests
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest
from pytest_autoquant.reports.page.render import PAGE

CASES, GROUPS = 600, 250
KIB_PER_MIB, BYTES_PER_MB = 1024, 1e6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    write_manifests(folder, cases=CASES, groups=GROUPS)
    return folder


def remove_reports(root):
    kept = set(find_manifests(root))
    for path in root.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()


def render(root):
    subprocess.run([sys.executable, "-m", "pytest_autoquant.cli", "render", root], check=True)


def test_rendering_a_large_grid(benchmark, root):
    benchmark.pedantic(render, (root,), setup=lambda: remove_reports(root), rounds=3)
    started = time.perf_counter()
    for path in find_manifests(root):
        read_manifest(path)
    reading = time.perf_counter() - started
    found = {
        "times reading the manifests": round(benchmark.stats.stats.min / reading, 1),
        "peak memory (MiB)": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // KIB_PER_MIB,
        "page (MB)": round((root / PAGE).stat().st_size / BYTES_PER_MB, 2),
    }
    benchmark.extra_info |= found
    print(f"\n{CASES} cases of {GROUPS} groups: {benchmark.stats.stats.min:.2f} s at best, {found}")
