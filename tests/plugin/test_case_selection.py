"""Which cases a command line or ini file selects."""

import re
from itertools import product

import pytest
import torch
from pytest_autoquant.allocation.scheme import builtin_schemes

NO_GPU = pytest.mark.skipif(
    torch.cuda.is_available(), reason="says what a machine without CUDA says"
)
SIZES = ("small", "medium", "large")
PRESET_PAIRS = {
    "wfp8_afp8",
    "wint8_aint8",
    "wint8_afp16",
    "wint4_afp16",
    "wfp4_afp8",
    "wnvfp4_afp8",
    "wnvfp4_afp16",
    "wfp4_afp4",
    "wnvfp4_anvfp4",
}
CANARY = """
    import pathlib, pytest

    @pytest.mark.aq_gpu
    @pytest.mark.aq_structure
    def test_canary(): pathlib.Path(__file__).with_name("canary").touch()

    def test_unmarked(): pass
"""


@pytest.fixture
def collected(project):
    """Return the ids of the tests that an inner pytest would run on ``cases``."""

    def collect(*arguments):
        result = project.runpytest_inprocess(
            "-p", "no:cacheprovider", "--collect-only", "-q", *arguments
        )
        assert result.ret == pytest.ExitCode.OK
        return {line.split("::")[1] for line in result.outlines if "::" in line}

    return collect


def sensitivity(pairs, granularities, sizes=SIZES):
    return {f"test_sensitivity[{'-'.join(c)}]" for c in product(pairs, granularities, sizes)}


def structure(pairs, granularities):
    return {f"test_structure[{'-'.join(c)}]" for c in product(pairs, granularities)}


def pairs_of(ids):
    return {re.search(r"\[(\w+)-", name)[1] for name in ids}


def test_the_grid_is_every_pair_under_every_overlay_at_every_size(collected):
    ids = collected("cases")
    assert len(pairs_of(ids)) == 24
    assert len(ids) == 24 * 10 * (1 + len(SIZES))
    assert "test_sensitivity[wint4_aint8-recipe_match_channel_token-small]" in ids
    assert "test_structure[wfp16_aint8-a_per_hidden_channel]" in ids


def test_keywords_select_the_int4_pairs_under_the_recipe_overlay_and_nothing_else(collected):
    pairs = ("wint4_afp16", "wint4_afp8", "wint4_aint8", "wint4_aint4")
    recipe = ("recipe_match_channel_token",)
    expected = sensitivity(pairs, recipe) | structure(pairs, recipe)
    assert collected("cases", "-k", "wint4 and recipe_match") == expected


@pytest.mark.parametrize(
    ("arguments", "function", "count"),
    [
        (("cases", ".", "--structure-only"), "test_structure", 240),
        (("cases", ".", "--gpu-only", "--aq-device=cpu"), "test_sensitivity", 720),
        ((".", "--aq-structure-only"), "test_structure", 240),
    ],
)
def test_only_flags_select_by_marker(project, collected, arguments, function, count):
    project.makepyfile(test_canary=CANARY)
    ids = collected(*arguments)
    assert {name.split("[")[0] for name in ids} == {function, "test_canary"}
    assert len(ids) == count + 1


def test_experimental_marks_every_pair_that_no_preset_names(collected):
    assert pairs_of(collected("cases", "-m", "not experimental")) == PRESET_PAIRS
    hybrids = pairs_of(collected("cases", "-m", "experimental"))
    assert hybrids.isdisjoint(PRESET_PAIRS)
    assert len(hybrids) == 24 - len(PRESET_PAIRS)


def test_structure_only_and_gpu_only_together_are_a_usage_error(project):
    result = project.runpytest_inprocess("cases", "--structure-only", "--gpu-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (message,) = filter(None, result.errlines)
    assert message.startswith("ERROR: --aq-structure-only and --aq-gpu-only (--structure-only and")
    assert "exclude each other" in message


@NO_GPU
@pytest.mark.parametrize("xdist", [("-p", "no:xdist"), ("-n2",)], ids=["no xdist", "n2"])
def test_gpu_only_without_a_gpu_fails_at_once_and_runs_nothing(project, xdist):
    project.makepyfile(test_canary=CANARY)
    result = project.runpytest_inprocess(*xdist, "cases", ".", "--gpu-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (message,) = filter(None, result.errlines)
    assert re.fullmatch(
        r"ERROR: --gpu-only \(--aq-gpu-only\): .*no CUDA device.*--aq-device cpu.*", message
    )
    assert not (project.path / "canary").exists()
    assert not (project.path / "reports").exists()


def test_gpu_only_runs_on_the_cpu_when_that_is_asked_for(project, modelopt):
    result = project.runpytest_inprocess(
        *(
            "-p",
            "no:cacheprovider",
            "cases",
            "--gpu-only",
            "--aq-device=cpu",
            "--aq-pairs=wint8_afp16",
        ),
        *("--aq-granularities=default", "--aq-sizes=small"),
    )
    result.assert_outcomes(passed=1, deselected=1 + len(builtin_schemes()))
    assert len(list(project.path.rglob("*_quant_manifest.json"))) == 1


@pytest.mark.parametrize(
    ("ini", "arguments", "expected"),
    [
        (
            "aq_pairs = wint8_afp16, wfp8_afp8\naq_granularities = default\naq_sizes = small large",
            (),
            sensitivity(("wint8_afp16", "wfp8_afp8"), ("default",), ("small", "large"))
            | structure(("wint8_afp16", "wfp8_afp8"), ("default",)),
        ),
        (
            "aq_pairs = wint8_afp16\naq_granularities = default\naq_structure_only = yes",
            ("--aq-pairs=wint4_afp16",),
            structure(("wint4_afp16",), ("default",)),
        ),
        (
            "aq_conf = conf\naq_pairs = mine\naq_granularities = w_group32\naq_sizes = small",
            (),
            sensitivity(("mine",), ("w_group32",), ("small",))
            | structure(("mine",), ("w_group32",)),
        ),
    ],
    ids=["names", "the command line wins over ini", "paths are relative to the ini file"],
)
def test_options_are_settable_in_ini(project, collected, monkeypatch, ini, arguments, expected):
    conf = project.path / "conf"
    (conf / "quant_pair").mkdir(parents=True)
    (conf / "quant_granularity").mkdir()
    (conf / "quant_pair" / "mine.yaml").write_text("{name: mine, weight: int8, activation: fp8}")
    (conf / "quant_granularity" / "g.yml").write_text(
        'name: w_group32\nquant_cfg_overrides: {"*weight_quantizer": {block_sizes: {"-1": 32}}}\n'
    )
    (project.path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    monkeypatch.chdir(project.path / "cases")
    assert collected(*arguments) == expected
