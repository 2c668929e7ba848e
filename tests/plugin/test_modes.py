"""The same selection run in every way gives the same files, and each tape is captured once."""

import re
from textwrap import dedent

import pytest

pytestmark = pytest.mark.slow

COUNTING = """
    import os, pathlib, socket
    import pytest

    os.environ["LOGNAME"] = "qzprivate"
    socket.gethostname = lambda: "qzprivatehost"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(item):
        from pytest_autoquant.scoring.replay import engine as replay

        if not hasattr(replay, "uncounted"):
            replay.uncounted, replay.capture = replay.capture, capture

    def capture(model, data, *arguments):
        from pytest_autoquant.scoring.replay import engine as replay

        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with pathlib.Path(__file__).with_name("captures.txt").open("a") as captures:
            captures.write(f"{data.captions.size} {worker}" + chr(10))
        return replay.uncounted(model, data, *arguments)
"""
MODES = {
    "plain": (),
    "no xdist": ("-p", "no:xdist"),
    "n2": ("-n2",),
    "loadscope": ("-n2", "--dist=loadscope"),
}


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def spread(request, new_project, grid_arguments):
    """One run, and the (size, worker) of every tape it captured."""
    project = new_project("spread")
    (project.folder / "conftest.py").write_text(dedent(COUNTING))
    run = project.run(*grid_arguments, addopts=request.param)
    captures = (project.folder / "captures.txt").read_text().splitlines()
    return run, sorted(tuple(line.split()) for line in captures)


def test_every_file_is_the_same_bit_for_bit(grid, spread, contents):
    run, _ = spread
    assert (run.status, grid.status) == (0, 0), run.output
    here, there = contents(grid.root), contents(run.root)
    # A manifest, two reports and a picture per case, two summaries, the page, the outcome log, a
    # picture per size.
    assert len(here) == 4 * 2 * 6 + 4 + 2
    assert {"index.html", "grid-tiny-qwen3-vl-small.svg", "grid-tiny-qwen3-vl-medium.svg"} < set(
        here
    )
    assert there.keys() == here.keys()
    for name, content in here.items():
        assert there[name] == content, name


def test_no_file_names_the_user_the_host_or_the_folder(spread):
    run, _ = spread
    for path in (path for path in run.root.rglob("*") if path.is_file()):
        text = path.read_text()
        assert "qzprivate" not in text, path
        assert str(run.folder) not in text, path


def test_each_tape_is_captured_once_and_by_workers_of_their_own(spread, request):
    _, captures = spread
    assert [size for size, _ in captures] == ["medium", "small"]
    is_dealt = request.node.callspec.params["spread"] == MODES["n2"]
    assert len({worker for _, worker in captures}) == (2 if is_dealt else 1)


@pytest.mark.parametrize(("device", "workers"), [("cpu", 3), ("auto", 2)])
def test_n_auto_takes_one_worker_per_gpu_and_on_a_cpu_the_usual_number(
    project, monkeypatch, device, workers
):
    if workers == 3:
        monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    result = project.runpytest_subprocess(
        *("cases", "-n", "auto", f"--aq-device={device}", "--structure-only"),
        *("-k", "nothing_of_this_name"),
    )
    assert re.search(rf"^{workers} workers \[0 items\]", result.stdout.str(), re.MULTILINE)
