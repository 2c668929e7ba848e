"""Options: parsed from the command line and from ini, and refused with where they came from."""

from dataclasses import fields
from pathlib import Path

import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.options.settings import OPTIONS, Settings, read_settings
from pytest_autoquant.plugin.pytest_config import session_of

BY_NAME = {option.name: option for option in OPTIONS}


def read(**given):
    """Settings as if these options had been given on the command line."""
    return read_settings(lambda option: (given.get(option.name), option.flag))


def test_every_option_has_one_setting_one_flag_and_one_ini_name():
    assert sorted(BY_NAME) == sorted(field.name for field in fields(Settings))
    assert len(OPTIONS) == len({o.flag for o in OPTIONS}) == len({o.ini for o in OPTIONS})
    assert all(option.help for option in OPTIONS)


@pytest.mark.parametrize(
    ("name", "flag", "ini"),
    [
        ("batch_size", "--aq-batch-size", "aq_batch_size"),
        ("report_dir", "--aq-report-dir", "aq_report_dir"),
        ("structure_only", "--structure-only", "aq_structure_only"),
        ("gpu_only", "--gpu-only", "aq_gpu_only"),
    ],
)
def test_flags_are_spelled_with_dashes_and_ini_names_with_underscores(name, flag, ini):
    assert (BY_NAME[name].flag, BY_NAME[name].ini) == (flag, ini)


def test_nothing_given_is_the_documented_defaults():
    assert read() == Settings(
        model="tiny-qwen3-vl",
        device="auto",
        dtype="auto",
        weights="checkpoint",
        captions=None,
        sizes=(),
        pairs=(),
        granularities=(),
        conf=None,
        schemes=(),
        target="none",
        held_out=None,
        export=False,
        replace_export=False,
        method="gradient",
        engine="auto",
        tape_device="auto",
        tape_dir=None,
        batch_size=32,
        score_size=128,
        effective_bits=8.0,
        seed=0,
        report_dir=None,
        publish=False,
        save_state=False,
        trust_remote_code=False,
        record_host=False,
        shard=None,
        resume=False,
        baseline=None,
        update_baseline=False,
        baseline_missing="fail",
        baseline_allow=(),
        tol_spearman=0.98,
        tol_top_ten=0.9,
        tol_total=0.02,
        tol_group=0.1,
        tol_selected=2,
        list=False,
        report_only=False,
        structure_only=False,
        gpu_only=False,
    )


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("model", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"),
        ("dtype", "bf16", "bf16"),
        ("method", "kl_div", "kl_div"),
        ("captions", "data/coco.txt", Path("data/coco.txt")),
        ("pairs", "wfp8_afp8", ("wfp8_afp8",)),
        ("pairs", " wfp8_afp8, wint8_aint8 ,", ("wfp8_afp8", "wint8_aint8")),
        ("granularities", "default\nw_group64", ("default", "w_group64")),
        ("sizes", ["small", "medium,large"], ("small", "medium", "large")),
        ("batch_size", "1", 1),
        ("score_size", "512", 512),
        ("seed", "0", 0),
        ("effective_bits", "16", 16.0),
        ("effective_bits", "4.5", 4.5),
        ("publish", True, True),
        ("publish", "yes", True),
        ("record_host", "TRUE", True),
        ("save_state", "on", True),
        ("gpu_only", "1", True),
        ("publish", "off", False),
        ("publish", "0", False),
        ("trust_remote_code", "False", False),
        ("trust_remote_code", "", False),
        ("shard", "1/1", Shard(index=1, count=1)),
        ("shard", "3/12", Shard(index=3, count=12)),
        ("shard", "01/02", Shard(index=1, count=2)),
        ("resume", True, True),
        ("schemes", "all", ("all",)),
        ("schemes", "fp8_autoquant_full, mine", ("fp8_autoquant_full", "mine")),
        ("target", "vllm", "vllm"),
        ("held_out", "data/held.txt", Path("data/held.txt")),
        ("export", True, True),
        ("export", "no", False),
        ("baseline", "reports/baseline", Path("reports/baseline")),
        ("baseline_missing", "skip", "skip"),
        ("baseline_missing", "write", "write"),
        ("baseline_allow", "torch,device", ("torch", "device")),
        ("tol_spearman", "0", 0.0),
        ("tol_top_ten", "1", 1.0),
        ("tol_total", "5e-3", 0.005),
        ("tol_group", "12.5", 12.5),
        ("tol_selected", "0", 0),
    ],
)
def test_a_value_is_parsed_as_its_kind(name, raw, value):
    parsed = getattr(read(**{"baseline": "blessed", "schemes": "all", name: raw}), name)
    assert parsed == value
    assert type(parsed) is type(value)


GATE_OPTIONS = {
    "update_baseline": True,
    "baseline_missing": "skip",
    "baseline_allow": "torch",
    "tol_total": "0.5",
    "tol_selected": "3",
}


@pytest.mark.parametrize(("name", "raw"), GATE_OPTIONS.items())
def test_an_option_of_the_gate_without_a_baseline_gates_nothing_and_is_refused(name, raw):
    flag = BY_NAME[name].flag
    with pytest.raises(UsageError, match=f"^{flag}: say which folder with --aq-baseline DIR$"):
        read(**{name: raw})


def test_ini_may_hold_tolerances_for_runs_that_are_gated():
    given = {"tol_total": "0.5"}
    found = read_settings(lambda option: (given.get(option.name), f"ini option {option.ini}"))
    assert (found.tol_total, found.baseline) == (0.5, None)


def test_a_home_folder_is_expanded():
    assert read(report_dir="~/reports").report_dir == Path.home() / "reports"


@pytest.mark.parametrize("origin", ["--aq-x", "ini option aq_x"])
@pytest.mark.parametrize(
    ("name", "raw", "allowed"),
    [
        ("dtype", "fp8", "auto, fp32, bf16, fp16"),
        ("weights", "", "checkpoint, random"),
        ("method", "Gradient", "gradient, kl_div"),
        ("batch_size", "0", "at least 1"),
        ("batch_size", "-4", "at least 1"),
        ("batch_size", "2.5", "whole number"),
        ("score_size", "many", "whole number"),
        ("seed", "-1", "at least 0"),
        ("effective_bits", "0", "above 0 and up to 16"),
        ("effective_bits", "16.01", "above 0 and up to 16"),
        ("effective_bits", "nan", "above 0 and up to 16"),
        ("effective_bits", "inf", "above 0 and up to 16"),
        ("effective_bits", "eight", "a number"),
        ("publish", "perhaps", "neither true nor false"),
        *[
            ("shard", raw, "I/N with I from 1 to N, such as 1/4")
            for raw in (
                *("", "1", "/", "1/", "/2", "0/2", "3/2", "0/0", "-1/2", "+1/2", "1/2/3"),
                *("1 / 2", "1/2\n", "a/b", "1.0/2", "1:2", "1/1000000"),
            )
        ],
        ("tol_spearman", "1.01", "from 0 to 1"),
        ("tol_spearman", "-0.1", "from 0 to 1"),
        ("tol_top_ten", "nan", "from 0 to 1"),
        ("tol_top_ten", "90%", "from 0 to 1"),
        ("tol_total", "-0.01", "at least 0"),
        ("tol_total", "inf", "at least 0"),
        ("tol_group", "nan", "at least 0"),
        ("tol_group", "ten", "at least 0"),
        ("tol_selected", "-1", "at least 0"),
        ("tol_selected", "0.5", "whole number"),
        ("target", "tensorrt", "none, vllm"),
        ("target", "VLLM", "none, vllm"),
        ("export", "maybe", "neither true nor false"),
        ("replace_export", "2", "neither true nor false"),
        ("baseline_missing", "ignore", "fail, skip, write"),
        ("baseline_allow", "gpu", "model, dtype, device, captions"),
    ],
)
def test_a_bad_value_is_refused_with_its_origin_itself_and_what_is_allowed(
    name, raw, allowed, origin
):
    with pytest.raises(UsageError) as caught:
        read_settings(lambda option: (raw if option.name == name else None, origin))
    message = str(caught.value)
    assert message.startswith(f"{origin}: {raw!r} is ")
    assert allowed in message


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"structure_only": True, "gpu_only": True}, ("--structure-only", "--gpu-only")),
        ({"publish": True, "report_dir": "out"}, ("--aq-publish", "--aq-report-dir")),
    ],
)
def test_options_that_contradict_each_other_are_refused_together(given, flags):
    with pytest.raises(UsageError, match="exclude each other") as caught:
        read(**given)
    assert all(flag in str(caught.value) for flag in flags)
    for alone, value in given.items():
        assert getattr(read(**{alone: value}), alone)


def test_updating_a_baseline_needs_its_folder():
    with pytest.raises(UsageError, match=r"^--aq-update-baseline: .*--aq-baseline DIR"):
        read(update_baseline=True)
    assert read(update_baseline=True, baseline="blessed").update_baseline


def test_one_wrong_name_among_allowed_fields_is_refused_by_itself():
    with pytest.raises(UsageError, match=r"^--aq-baseline-allow: 'pytorch' is not allowed"):
        read(baseline_allow="torch,pytorch")


def test_a_shard_reads_as_it_is_given():
    assert str(read(shard="2/3").shard) == "2/3"


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({}, "repo/reports/tmp"),
        ({"publish": True}, "repo/reports"),
        ({"report_dir": "elsewhere/out"}, "elsewhere/out"),
    ],
)
def test_reports_go_where_they_are_told(given, folder):
    assert read(**given).report_root(Path("repo")) == Path(folder)


def test_the_seed_matters_only_for_random_weights():
    assert read(seed="7").random_seed is None
    assert read(seed="7", weights="random").random_seed == 7


def test_a_bad_value_names_the_command_line_option_it_came_from(pytester):
    config = pytester.parseconfig("--aq-batch-size=0")
    with pytest.raises(pytest.UsageError, match=r"^--aq-batch-size: '0' is not allowed"):
        session_of(config)


def test_a_bad_value_names_the_ini_option_it_came_from(pytester):
    pytester.makeini("[pytest]\naq_batch_size = 0\n")
    with pytest.raises(pytest.UsageError, match=r"^ini option aq_batch_size: '0' is not allowed"):
        session_of(pytester.parseconfig())


def test_the_command_line_wins_over_ini(pytester):
    pytester.makeini("[pytest]\naq_batch_size = 0\naq_pairs = wfp8_afp8\naq_seed = 5\n")
    settings = session_of(pytester.parseconfig("--aq-batch-size=3", "--aq-seed=6")).settings
    assert (settings.batch_size, settings.seed, settings.pairs) == (3, 6, ("wfp8_afp8",))


def test_an_ini_path_is_relative_to_the_ini_file_and_a_flag_may_be_set_there(pytester):
    pytester.makeini("[pytest]\naq_report_dir = out\naq_record_host = yes\n")
    settings = session_of(pytester.parseconfig()).settings
    assert settings.report_dir == pytester.path / "out"
    assert settings.record_host


@pytest.mark.parametrize("raw", ["", " , "])
def test_a_list_that_names_nothing_is_refused(raw):
    with pytest.raises(UsageError, match=r"^--aq-sizes: names nothing"):
        read_settings(lambda option: (raw if option.name == "sizes" else None, option.flag))


def test_replacing_exports_needs_an_export():
    said = r"^--aq-replace-export .*replaces exports; give --aq-export with it$"
    with pytest.raises(UsageError, match=said):
        read(replace_export=True)
    with pytest.raises(UsageError, match=said):
        read(replace_export=True, schemes="all")
    found = read(replace_export=True, export=True, schemes="all")
    assert (found.replace_export, found.export) == (True, True)


NOTHING_TO_EXPORT = "--aq-export (or its ini option) exports schemes; say which with --aq-schemes"


@pytest.mark.parametrize("more", [{}, {"replace_export": True}])
def test_an_export_needs_schemes(more):
    with pytest.raises(UsageError) as caught:
        read(export=True, **more)
    assert str(caught.value) == NOTHING_TO_EXPORT


def test_an_export_of_ini_needs_schemes_too(pytester):
    pytester.makeini("[pytest]\naq_export = on\n")
    with pytest.raises(pytest.UsageError) as caught:
        session_of(pytester.parseconfig())
    assert str(caught.value) == NOTHING_TO_EXPORT
    assert session_of(pytester.parseconfig("--aq-schemes=all")).settings.export


@pytest.mark.parametrize("raw", ["", " , "])
def test_schemes_that_name_nothing_are_refused(raw):
    with pytest.raises(UsageError, match=r"^--aq-schemes: names nothing"):
        read(schemes=raw)


def test_options_of_schemes_are_read_from_ini(pytester):
    pytester.makeini(
        "[pytest]\naq_schemes = all\naq_target = vllm\naq_held_out = held.txt\naq_export = on\n"
    )
    (pytester.path / "held.txt").write_text("A dog runs over the beach.\n")
    settings = session_of(pytester.parseconfig()).settings
    assert (settings.schemes, settings.target, settings.export) == (("all",), "vllm", True)
    assert settings.held_out == pytester.path / "held.txt"
