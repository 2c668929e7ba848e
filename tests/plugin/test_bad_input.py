"""Bad input gets one clear message, the right exit status, and loses nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import pytest_autoquant
import torch
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest
from safetensors.torch import load_file, save_file

DATA = Path(pytest_autoquant.__file__).parent / "models" / "data"

EMBEDDED = DATA / "tiny-qwen3-vl"
CANARY = "import pathlib; pathlib.Path(__file__).with_name('canary').touch()\ndef test_it(): pass"
ONE = (
    *("-p", "no:cacheprovider", "cases/test_sensitivity.py", "--aq-device=cpu"),
    *("--aq-pairs=wint8_afp16", "--aq-granularities=default", "--aq-sizes=small"),
)


@pytest.fixture
def refused(project):
    """Run an inner pytest that must stop at once; return the one message it gives."""
    project.makepyfile(test_canary=CANARY)

    def run(*arguments):
        result = project.runpytest_inprocess("-p", "no:cacheprovider", "test_canary.py", *arguments)
        output = result.stdout.str() + result.stderr.str()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "Traceback" not in output
        assert output.count("ERROR") == 1
        assert not (project.path / "canary").exists()
        assert not (project.path / "reports").exists()
        return result.stderr.str().strip().removeprefix("ERROR: ")

    return run


@pytest.fixture
def failed(project, modelopt):
    """Run one case that must fail; return the one message it gives."""

    def run(*arguments):
        result = project.runpytest_inprocess(*ONE, *arguments)
        result.assert_outcomes(failed=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        report = re.search(
            r"_+ test_sensitivity\[\S+\] _+\n(.+?)\n(?:-+ Captured|=+ )", result.stdout.str(), re.S
        )
        assert "Traceback" not in report[1]
        assert "\n" not in report[1]
        for path in (path for path in (project.path / "reports").rglob("*") if path.is_file()):
            assert str(project.path) not in path.read_text(), path
        return report[1]

    return run


@pytest.fixture
def checkpoint(project):
    """A copy of the embedded model's folder, to be spoilt."""
    return Path(shutil.copytree(EMBEDDED, project.path / "spoilt"))


def change_weight(folder, suffix, change):
    """Replace one tensor by ``change(tensor)``; drop it where that is None."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    (name,) = [key for key in weights if key.endswith(suffix)]
    changed = change(weights.pop(name))
    if changed is not None:
        weights[name] = changed.contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    return name


UNKNOWN = {
    "pair": (
        "--aq-pairs=wint4_aint88",
        ["'wint4_aint88' is unknown", "'wint4_aint8'", "--aq-conf"],
    ),
    "overlay": (
        "--aq-granularities=w_group96",
        ["'w_group96' is unknown", "w_group64, w_group128"],
    ),
    "size": ("--aq-sizes=huge", ["'huge' is unknown", "small, medium, large"]),
    "model": ("--aq-model=qwen9", ["'qwen9' is unknown", "tiny-qwen3-vl, qwen3-vl-2b", "folder"]),
    "method": ("--aq-method=hessian", ["--aq-method: 'hessian'", "gradient, kl_div"]),
    "dtype": ("--aq-dtype=int8", ["--aq-dtype: 'int8'", "auto, fp32, bf16, fp16"]),
    "device": ("--aq-device=banana", ["unknown device 'banana'", "auto, cpu, cuda or cuda:N"]),
    "device of another kind": ("--aq-device=meta", ["meta", "auto, cpu, cuda or cuda:N"]),
    "no batch": ("--aq-batch-size=0", ["--aq-batch-size: '0'", "whole number of at least 1"]),
    "half a caption": ("--aq-score-size=1.5", ["--aq-score-size: '1.5'", "whole number"]),
    "negative seed": ("--aq-seed=-1", ["--aq-seed: '-1'", "whole number of at least 0"]),
    "seed beyond 64 bits": (f"--aq-seed={2**64}", [f"--aq-seed: '{2**64}'", "whole number"]),
    "no bits": ("--aq-effective-bits=0", ["--aq-effective-bits: '0'", "above 0 and up to 16"]),
    "NaN bits": ("--aq-effective-bits=nan", ["--aq-effective-bits: 'nan'", "above 0 and up to 16"]),
    "too many bits": ("--aq-effective-bits=17", ["--aq-effective-bits: '17'", "up to 16"]),
    "no such captions": ("--aq-captions=none.txt", ["none.txt", "does not exist"]),
    "no such conf": ("--aq-conf=none", ["--aq-conf none", "no such file or folder"]),
    "both roots": ("--aq-publish --aq-report-dir=out", ["--aq-publish and --aq-report-dir"]),
}


@pytest.mark.parametrize(("arguments", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_bad_option_is_refused_with_what_is_allowed(refused, arguments, words):
    message = refused(*arguments.split())
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "aq_publish = perhaps",
            "ini option aq_publish: invalid truth value 'perhaps'; give true or false",
        ),
        ("aq_batch_size = none", "ini option aq_batch_size: invalid literal"),
        ("aq_pairs = wint3_afp16", "pair 'wint3_afp16' is unknown"),
    ],
)
def test_a_bad_ini_value_stops_the_cases_with_its_origin_and_nothing_else(project, line, words):
    (project.path / "pytest.ini").write_text(f"[pytest]\n{line}\n")
    stopped = project.runpytest_inprocess("-p", "no:cacheprovider", "cases")
    assert stopped.ret == pytest.ExitCode.USAGE_ERROR
    (message,) = filter(None, stopped.errlines)
    assert words in message
    project.makepyfile(test_unrelated="def test_it(): pass")
    unrelated = project.runpytest_inprocess("-p", "no:cacheprovider", "test_unrelated.py")
    unrelated.assert_outcomes(passed=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu_is_refused(refused, device):
    message = refused(f"--aq-device={device}")
    assert message.startswith(f"device {device!r} is not available: torch sees 0 CUDA devices; use")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\t\r\n", "is empty"),
        (b"caf\xe9 with a dog\n", "not UTF-8 (byte 3)"),
    ],
)
def test_captions_without_a_caption_are_refused(refused, project, content, words):
    (project.path / "captions.txt").write_bytes(content)
    message = refused("--aq-captions=captions.txt")
    assert "captions.txt" in message
    assert words in message


YAML = {
    "syntax": ("quant_pair", "name: [mine", ["expected ',' or ']'"]),
    "no mapping": ("quant_pair", "- mine", ["must be a mapping", "name, weight, activation"]),
    "unknown key": (
        "quant_pair",
        "{name: mine, weight: int8, activation: fp16, bits: 3}",
        ["unknown key 'bits'"],
    ),
    "missing key": ("quant_pair", "{name: mine, weight: int8}", ["key 'activation' is missing"]),
    "unknown dtype": (
        "quant_pair",
        "{name: mine, weight: int3, activation: fp16}",
        ["weight must be one of fp4, nvfp4", "got 'int3'"],
    ),
    "key twice": ("quant_pair", "name: mine\nname: mine\n", ["'name' is written twice"]),
    "no date": ("quant_pair", "{name: 2001-99-99, weight: int8, activation: fp16}", ["month"]),
    "unsafe name": (
        "quant_pair",
        "{name: ../mine, weight: int8, activation: fp16}",
        ["name must consist of a-z, 0-9 and _ only, got '../mine'"],
    ),
    "built-in name": (
        "quant_pair",
        "{name: wint8_afp16, weight: int4, activation: fp16}",
        ["'wint8_afp16' is built in and defined differently"],
    ),
    "axis and blocks": (
        "quant_granularity",
        'name: mine\nquant_cfg_overrides: {"*weight_quantizer": {axis: 0, block_sizes: {-1: 8}}}',
        ["axis and block_sizes exclude each other"],
    ),
    "dtype in an overlay": (
        "quant_granularity",
        'name: mine\nquant_cfg_overrides: {"*weight_quantizer": {num_bits: 4}}',
        ["unknown key 'num_bits'", "the quant pair sets the dtype"],
    ),
    "other quantizer": (
        "quant_granularity",
        'name: mine\nquant_cfg_overrides: {"*output_quantizer": {axis: 0}}',
        ["unknown key '*output_quantizer'"],
    ),
}


@pytest.mark.parametrize(("folder", "text", "words"), YAML.values(), ids=YAML)
def test_a_mistake_in_yaml_names_the_file_and_the_key(refused, project, folder, text, words):
    path = project.path / "conf" / folder / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    message = refused("--aq-conf=conf")
    assert message.startswith(f"conf/{folder}/mine.yaml: ")
    assert [word for word in words if word not in message] == []


def test_one_name_in_two_yaml_files_names_both(refused, project):
    folder = project.path / "conf" / "quant_pair"
    folder.mkdir(parents=True)
    for name in ("a.yaml", "b.yml"):
        (folder / name).write_text("{name: mine, weight: int8, activation: fp8}")
    message = refused("--aq-conf=conf")
    assert (
        message == "conf/quant_pair/b.yml: name 'mine' is already defined in conf/quant_pair/a.yaml"
    )


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_presets_that_modelopt_lacks_end_the_run_before_the_first_case(project, modelopt, workers):
    import modelopt

    folder = project.path / "conf" / "quant_pair"
    folder.mkdir(parents=True)
    for name, weight, preset in (("a", "int4", "INT3_CFG"), ("b", "fp4", "NVFP4_CFG")):
        (folder / f"{name}.yaml").write_text(
            f"{{name: {name}, weight: {weight}, activation: fp16, format_name: {preset}}}"
        )
    result = project.runpytest_inprocess(
        *ONE, "--aq-conf=conf", "--aq-pairs=a,b,wint8_afp16", workers
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in output
    for preset in ("INT3_CFG", "NVFP4_CFG"):
        assert f"nvidia-modelopt {modelopt.__version__} has no preset '{preset}'" in output
    assert not (project.path / "reports").exists()


@pytest.mark.parametrize(
    ("missing", "words"), [("config.json", "has no config.json"), ("model.safetensors", "weights")]
)
def test_a_checkpoint_folder_without_config_or_weights_is_refused(
    refused, checkpoint, missing, words
):
    (checkpoint / missing).unlink()
    message = refused(f"--aq-model={checkpoint}")
    assert message.startswith(f"model folder {checkpoint}: ")
    assert words in message


def test_a_checkpoint_of_another_architecture_fails_with_its_name(failed, checkpoint):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    config = BertConfig(num_hidden_layers=1, num_attention_heads=1, **sizes)
    BertModel(config).save_pretrained(checkpoint)
    message = failed(f"--aq-model={checkpoint}")
    assert message.startswith("model spoilt: architecture BertModel is neither an image-text nor a")


def test_a_checkpoint_that_lacks_a_weight_fails_with_its_name(failed, checkpoint):
    name = change_weight(checkpoint, "layers.0.mlp.down_proj.weight", lambda _: None)
    message = failed(f"--aq-model={checkpoint}")
    assert "the checkpoint lacks 1 weights" in message
    assert name in message


def test_a_checkpoint_with_a_weight_of_another_shape_fails_with_its_name(failed, checkpoint):
    name = change_weight(checkpoint, "layers.0.mlp.down_proj.weight", lambda weight: weight[:, 1:])
    assert name in failed(f"--aq-model={checkpoint}")


def test_a_truncated_weight_file_fails_as_such(failed, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = failed(f"--aq-model={checkpoint}")
    assert message.startswith("model spoilt: its weights cannot be loaded from spoilt")


def test_a_config_that_is_no_json_fails_as_such(failed, checkpoint):
    (checkpoint / "config.json").write_text("{")
    message = failed(f"--aq-model={checkpoint}")
    assert message.startswith("model spoilt: its config cannot be loaded from spoilt")


def test_a_checkpoint_without_a_tokenizer_fails_as_such(failed, checkpoint):
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in failed(f"--aq-model={checkpoint}")


def test_captions_of_one_token_alone_fail_the_case(failed, project):
    (project.path / "letters.txt").write_text("a\nb\n")
    message = failed("--aq-captions=letters.txt")
    assert message.startswith("letters.txt: no caption has 2 tokens or more")


def test_scores_that_are_no_numbers_fail_the_case_and_name_their_groups(
    project, checkpoint, modelopt
):
    change_weight(checkpoint, "language_model.norm.weight", lambda norm: norm * 0 + 3e38)
    result = project.runpytest_inprocess(*ONE, f"--aq-model={checkpoint}")
    result.assert_outcomes(failed=1)
    (manifest,) = map(read_manifest, project.path.rglob("*_quant_manifest.json"))
    assert manifest.case.status == "failed"
    assert {group.importance for group in manifest.layer_sensitivity.values()} == {None}
    (problem,) = manifest.case.problems
    assert problem.startswith("scores are not finite in 24 groups: model.language_model.layers.0.")
    result.stdout.fnmatch_lines(f"*failed spoilt/wint8_afp16/default/small/gradient: {problem}")


def test_too_few_captions_one_short_and_one_twice_are_recorded_and_the_case_goes_on(
    project, modelopt
):
    captions = ["a dog runs over the grass", "a", *["two cats sleep on a chair"] * 2]
    (project.path / "few.txt").write_text("\n\n".join(captions))
    result = project.runpytest_inprocess(*ONE, "--aq-captions=few.txt")
    result.assert_outcomes(passed=1)
    (manifest,) = map(read_manifest, project.path.rglob("*_quant_manifest.json"))
    data = manifest.dataset
    assert (data.num_requested, data.num_calib_samples, data.num_dropped) == (16, 3, 1)
    assert data.num_duplicates == 1
    few, dropped, equal = manifest.case.notes
    assert few == "few.txt holds 4 captions, size small needs 16: measured on 3"
    assert dropped == "few.txt: left out 1 with fewer than two tokens, such as 'a'"
    assert equal == (
        "few.txt: 1 of 3 captions have the tokens of an earlier one, which so counts more than once"
    )
    assert re.findall(r"AutoquantWarning: (.+)", result.stdout.str()) == [few, dropped, equal]


def test_a_budget_that_no_selected_case_reaches_is_refused_before_the_first_case(project):
    result = project.runpytest_inprocess(*ONE, "--aq-effective-bits=2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    words = "--aq-effective-bits 2: too small for every selected case; the least is 8 bits"
    assert words in result.stderr.str()
    assert not (project.path / "reports").exists()


def test_a_case_that_misses_the_budget_passes_and_states_its_least_bits(project, modelopt):
    pairs = "--aq-pairs=wint8_afp16,wint4_afp16"
    project.runpytest_inprocess(*ONE, pairs, "--aq-effective-bits=5").assert_outcomes(passed=2)
    (path,) = project.path.rglob("wint8*_quant_manifest.json")
    state = json.loads(path.read_text())["autoquant_state"]
    assert state["constraints"]["effective_bits"] == 5
    assert (state["is_satisfied"], state["minimum_effective_bits"]) == (False, 8 + 5 / 24)
    report = (path.parent / "layer-sensitivity-report.md").read_text()
    assert "cannot be met: the smallest reachable is 8.2084, with every group" in report


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
@pytest.mark.parametrize(
    ("taken", "arguments"), [("reports", ()), ("out", ("--aq-report-dir=out",))], ids=["tmp", "dir"]
)
def test_an_unwritable_report_folder_is_known_before_the_first_case(
    project, taken, arguments, workers
):
    (project.path / taken).write_text("a file in its place")
    (project.path / "cases" / "conftest.py").write_text(
        "import pathlib\n"
        "def pytest_runtest_setup(): pathlib.Path(__file__).with_name('canary').touch()\n"
    )
    result = project.runpytest_inprocess(*ONE, workers, *arguments)
    output = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in output
    assert re.search(r"report folder \S+: cannot be written \(.+\); .* --aq-report-dir", output)
    assert not (project.path / "cases" / "canary").exists()


def test_a_manifest_that_cannot_be_written_fails_the_run_and_says_so(project, modelopt):
    (project.path / "out").mkdir()
    (project.path / "out" / "tiny-qwen3-vl").write_text("a file in its place")
    result = project.runpytest_inprocess(*ONE, "--aq-report-dir=out")
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("NOT WRITTEN: *_quant_manifest.json: *")
    summary = json.loads((project.path / "out" / "summary.json").read_text())
    (error,) = summary["write_errors"]
    assert f"<li>not written: {error}</li>" in (project.path / "out" / "index.html").read_text()
