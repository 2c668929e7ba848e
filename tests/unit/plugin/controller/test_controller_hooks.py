"""The controller's hooks: what a worker is told, how many there are, and which runs are refused."""

from types import SimpleNamespace

import pytest
from builders import changed, files_in
from execnet import XSpec
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.fingerprint import fingerprint_of
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest
from pytest_autoquant.models.checkpoint_digest import files_digest
from pytest_autoquant.plugin.controller.hooks import Controller, num_workers
from pytest_autoquant.plugin.gpus import VISIBLE
from pytest_autoquant.plugin.messages.collected import CollectedCases
from pytest_autoquant.plugin.messages.worker_input import worker_input_of
from pytest_autoquant.reports.write import write_case

CASES = CollectedCases(cases={"a.py::t[x]": "m/p/g/small/gradient"}, num_selected=1)
SCHEMES = CollectedCases(schemes={"a.py::s[x]": "m/schemes/mine/small"}, num_selected=1)
OTHERS = CollectedCases(others=("a.py::t",), num_selected=1)
UPDATING = ["--aq-baseline=blessed", "--aq-update-baseline"]


@pytest.fixture
def controller(pytester):
    """Build the controller of a run with these arguments."""
    return lambda *arguments: Controller(pytester.parseconfig(*arguments))


# Workers


class Nodes:
    """Workers as xdist starts them, on hosts that are written like xdist's ``--tx``."""

    def __init__(self, controller, *specs):
        self._controller = controller
        self._specs = [XSpec(spec) for spec in specs]

    def start(self, index, name):
        """Start a worker; return it."""
        gateway = SimpleNamespace(spec=self._specs[index], id=name)
        manager = SimpleNamespace(specs=self._specs)
        node = SimpleNamespace(gateway=gateway, nodemanager=manager, workerinput={})
        self._controller.pytest_configure_node(node)
        return node


def test_worker_has_a_gpu_of_its_host_for_itself(controller):
    specs = ("popen", "popen", "ssh=me@far//python=python3", "ssh=you@far", "popen")
    nodes = Nodes(controller("--dist=load"), *specs)
    inputs = [worker_input_of(nodes.start(i, f"gw{i}")) for i in range(5)]
    assert [found.gpu for found in inputs] == [0, 1, 0, 1, 2]
    assert [found.workers_on_host for found in inputs] == [3, 3, 2, 2, 3]
    assert [found.is_dealt_by_part for found in inputs] == [True] * 5
    assert [dict(found.earlier) for found in inputs] == [{}] * 5


def test_worker_in_place_of_a_dead_one_takes_its_gpu(controller):
    main = controller("--dist=load")
    nodes = Nodes(main, *["popen"] * 3)
    started = [nodes.start(i, f"gw{i}") for i in range(3)]
    main.pytest_testnodedown(started[1])
    assert worker_input_of(nodes.start(1, "gw3")).gpu == 1


def test_cases_are_dealt_by_part_only_where_xdist_balances_the_load(controller):
    node = Nodes(controller("--dist=loadfile"), "popen").start(0, "gw0")
    assert not worker_input_of(node).is_dealt_by_part


def test_worker_of_a_resumed_run_gets_the_earlier_fingerprints(pytester, controller, manifest):
    case_id = "tiny-qwen3-vl/wint4_aint8/a_per_token_dynamic/small/gradient"
    earlier = changed(manifest, "case", case_id=case_id)
    earlier = changed(earlier, "model", name="tiny-qwen3-vl")
    write_case(pytester.path / "out", earlier)
    for arguments, expected in (
        (["--aq-report-dir=out", "--aq-resume"], {case_id: fingerprint_of(earlier)}),
        (["--aq-report-dir=out"], {}),
    ):
        node = Nodes(controller(*arguments), "popen").start(0, "gw0")
        assert worker_input_of(node).earlier == expected


def test_corrupt_manifest_of_a_resumed_run_is_in_the_results(pytester, controller, manifest):
    path = write_case(pytester.path / "out", changed(manifest, "model", name="tiny-qwen3-vl"))
    path.write_text("{")
    main = controller("--aq-report-dir=out", "--aq-resume")
    assert main.earlier == {}
    (sentence,) = main.collector.results.left_out
    assert path.name in sentence


@pytest.mark.parametrize(
    ("gpus", "device", "expected"),
    [
        ("0,1,2", "auto", 3),
        ("0,1,2", "cuda", 3),
        ("0,1,2", "cuda:1", 1),
        ("0,1,2", "cpu", None),
        ("", "auto", None),
    ],
)
def test_auto_starts_one_worker_per_gpu(pytester, monkeypatch, gpus, device, expected):
    monkeypatch.setenv(VISIBLE, gpus)
    assert num_workers(pytester.parseconfig(f"--aq-device={device}")) == expected


# Runs that measure nothing


@pytest.mark.parametrize(
    ("arguments", "collected", "message"),
    [
        (["--aq-pairs=wfp8_afp8"], None, "--aq-pairs: no case was selected"),
        (UPDATING, None, "--aq-baseline: no case was selected"),
        (["--aq-no-resume"], None, None),
        (["--aq-report-dir=out"], None, "--aq-report-dir: no case was selected"),
        ([], None, None),
        (["--aq-pairs=wfp8_afp8"], CASES, None),
        (["--aq-pairs=wfp8_afp8"], OTHERS, None),
        (UPDATING, CASES, None),
        (UPDATING, OTHERS, None),
        (UPDATING, SCHEMES, "--aq-baseline: no sensitivity case was selected"),
        (["--aq-schemes=all"], SCHEMES, None),
        (["--aq-schemes=all"], CASES, "--aq-schemes: no scheme case was selected"),
        (["--aq-schemes=all", "--aq-shard=1/2"], CASES, None),
        (["--aq-schemes=all", "--collect-only"], None, None),
    ],
)
def test_run_that_selects_nothing_of_what_is_asked_for_is_refused(
    controller, arguments, collected, message
):
    main = controller(*arguments)
    if collected is not None:
        main.collect(collected)
    if message is None:
        main.pytest_collection_finish(SimpleNamespace(items=["any test"]))
        return
    with pytest.raises(pytest.UsageError) as caught:
        main.pytest_collection_finish(SimpleNamespace(items=["any test"]))
    assert str(caught.value).startswith(message)


def test_run_without_any_test_is_left_to_pytest(controller):
    controller("--aq-pairs=wfp8_afp8").pytest_collection_finish(SimpleNamespace(items=[]))


def test_budget_that_no_collected_case_can_reach_is_refused(controller):
    main = controller("--aq-effective-bits=4")
    case_id = "tiny-qwen3-vl/wint8_aint8/default/small/gradient"
    with pytest.raises(pytest.UsageError, match="the least is 8 bits per weight"):
        main.collect(CollectedCases(cases={"a.py::t[x]": case_id}, num_selected=1))


def test_unwritable_report_folder_is_refused_before_the_first_case(pytester, controller):
    (pytester.path / "taken").write_text("a file")
    with pytest.raises(pytest.UsageError, match="--aq-report-dir"):
        controller("--aq-report-dir=taken").collect(CASES)


def test_checkpoint_whose_name_is_another_s_is_refused_before_the_first_case(
    pytester, controller, manifest
):
    folder = pytester.mkdir("toy")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    write_case(pytester.path / "out", manifest)
    written = files_in(pytester.path / "out")
    arguments = (f"--aq-model={folder}", "--aq-report-dir=out")
    with pytest.raises(pytest.UsageError, match=f"^model toy: .* has digest {'d' * 16}, this"):
        controller(*arguments).collect(CASES)
    assert files_in(pytester.path / "out") == written
    controller(*arguments).collect(OTHERS)  # may need no model
    controller(*arguments, "--aq-model-name=mine").collect(CASES)
    same = changed(manifest, "model", digest=files_digest(folder))
    write_atomic(pytester.path / "out" / manifest.path, dump_manifest(same))
    controller(*arguments).collect(CASES)


# The header


@pytest.mark.parametrize(
    ("arguments", "header"),
    [
        ([], []),
        (
            ["--aq-device=cpu", "--aq-captions=mine.txt", "--aq-publish"],
            [
                "autoquant: model tiny-qwen3-vl, device cpu, dtype auto, engine auto, "
                "captions mine.txt",
                "autoquant: reports in reports",
            ],
        ),
    ],
)
def test_header_says_what_is_measured_and_into_which_folder(
    pytester, controller, arguments, header
):
    (pytester.path / "mine.txt").write_text("A dog runs over the beach.\n")
    assert controller(*arguments).pytest_report_header() == header
