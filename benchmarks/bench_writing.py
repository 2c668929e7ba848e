"""What a finished case costs the controller: its manifest, its layer reports, its picture.

    pytest benchmarks/bench_writing.py -s

The manifests are those of a sweep over the embedded model: run ``pytest cases`` first.
"""

import time
from pathlib import Path

import pytest
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.reports import write

SWEPT = Path(__file__).parents[1] / "reports" / "tmp"
MOST = 120


@pytest.fixture(scope="module")
def manifests():
    texts = [path.read_text() for path in list(find_manifests(SWEPT))[:MOST]]
    if not texts:
        pytest.skip(f"no manifest under {SWEPT}: run pytest cases first")
    return [load_manifest(text, source="a sweep") for text in texts]


def timed(function, values):
    """Return milliseconds by the clock, and of the processor, per value."""
    started, processor = time.perf_counter(), time.process_time()
    for value in values:
        function(value)
    seconds = time.perf_counter() - started, time.process_time() - processor
    return [1e3 * each / len(values) for each in seconds]


def test_what_a_case_costs_the_controller(tmp_path, manifests):
    cases, texts = list(map(case_result_of, manifests)), list(map(dump_manifest, manifests))
    folders = [(tmp_path / manifest.path).parent for manifest in manifests]
    write.draw_layer_maps(tmp_path / "first", cases[:1])  # loads the drawing library
    steps = {
        "read what the worker sent": lambda i: load_manifest(texts[i], source="a worker"),
        "manifest": lambda i: write.write_atomic(tmp_path / manifests[i].path, texts[i]),
        "layer reports": lambda i: write.write_layer_reports(folders[i], manifests[i], cases[i]),
        "picture, after the last case": lambda i: write.draw_layer_maps(tmp_path, [cases[i]]),
    }
    for name, step in steps.items():
        clock, processor = timed(step, range(len(cases)))
        print(f"\n{name}: {clock:.2f} ms, {processor:.2f} ms of the processor", end="")
