"""What the controller tells a worker before it starts."""

from types import SimpleNamespace

from pytest_autoquant.manifests.fingerprint import fingerprint_of
from pytest_autoquant.plugin.messages.worker_input import (
    WORKER_INPUT,
    WorkerInput,
    worker_input_of,
)
from pytest_autoquant.regression.recorded_model import RecordedModel


def test_worker_input_reads_back_as_it_was_sent(manifest):
    earlier = {"toy/größe/|": fingerprint_of(manifest)}
    for sent in (
        WorkerInput(is_dealt_by_part=True, gpu=3, workers_on_host=4, earlier=earlier),
        WorkerInput(gpu=0, recorded=RecordedModel(record=manifest.model, manifest="a/ü.json")),
    ):
        config = SimpleNamespace(workerinput={"workercount": 4, WORKER_INPUT: sent.dump()})
        assert worker_input_of(config) == sent


def test_process_without_input_of_ours_has_all_cores_and_no_gpu_of_its_own():
    for config in (SimpleNamespace(), SimpleNamespace(workerinput={"workercount": 4})):
        assert worker_input_of(config) == WorkerInput(
            is_dealt_by_part=False, gpu=None, workers_on_host=1, earlier={}
        )
