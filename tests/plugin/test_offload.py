"""A model that is spread over devices: what is refused before the first case, and one real case."""

import json
import re
import shutil

import pytest

ONE = (
    *("cases/test_sensitivity.py", "-p", "no:cacheprovider", "--aq-sizes=small"),
    *("--aq-pairs=wint8_afp16", "--aq-granularities=default"),
)
AUTO = (*ONE, "--aq-device=cpu", "--aq-device-map=auto")

#: The 235B in fp32 takes more.
FREE = shutil.disk_usage("/").free


def refused(project, *arguments):
    """Run a case that must not start; return the one message."""
    result = project.runpytest_inprocess(*arguments)
    output, errors = result.stdout.str(), result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, output
    assert "Traceback" not in output + errors
    assert "no tests ran" in output
    return errors.strip().removeprefix("ERROR: ")


def test_less_memory_than_a_layer_takes_is_refused(project, modelopt):
    message = refused(project, *AUTO, "--aq-max-memory=100KiB")
    assert message == (
        "--aq-max-memory: weights may take 100.0 KiB of the host, and one layer, "
        "model.language_model.embed_tokens, takes 1024.0 KiB; allow at least as much"
    )


def test_folder_that_is_a_file_is_refused(project, modelopt):
    (project.path / "taken").touch()
    message = refused(project, *AUTO, "--aq-offload-dir=taken")
    assert re.fullmatch(
        r"offload folder \S+/taken: cannot be written \(.+\); choose another one with "
        "--aq-offload-dir",
        message,
    )


@pytest.mark.skipif(FREE > 9e11, reason="the disk holds the 235B")
def test_folder_on_a_disk_that_is_too_small_is_refused(project, modelopt):
    model = ("--aq-model=qwen3-vl-235b-a22b", "--aq-weights=random")
    message = refused(project, *AUTO, *model, "--aq-max-memory=20GiB", "--aq-offload-dir=weights")
    assert re.search(r"offload folder \S+: .+ are free, and 8\d\d\.\d GiB of weights are", message)
    assert list((project.path / "weights").iterdir()) == []


def test_more_workers_than_gpus_are_refused(spawn, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run = spawn(*ONE, "-n3", "--aq-device-map=auto")
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in run.output
    assert (
        "--aq-device-map auto: 3 workers on one host would share 2 GPUs, and each would plan with "
        "all of its memory; give at most -n 2"
    ) in run.output


def test_case_of_an_offloaded_model_has_the_numbers_of_a_resident_one(project, modelopt):
    manifests = []
    for options in (("--aq-device=cpu",), (*AUTO[-2:], "--aq-max-memory=1MiB")):
        result = project.runpytest_inprocess(*ONE, *options, "--aq-no-check-scores")
        result.assert_outcomes(passed=1)
        (path,) = (project.path / "reports").rglob("*_quant_manifest.json")
        manifests.append(json.loads(path.read_text()))
        shutil.rmtree(project.path / "reports")
    for manifest in manifests:
        del manifest["timing"], manifest["memory"], manifest["measured_at"]
    assert manifests[0] == manifests[1]
