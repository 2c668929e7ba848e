"""Options of a run, reached from pytest's config: command line, ini file and TOML."""

import pytest
from pytest_autoquant.options.table import BY_NAME
from pytest_autoquant.plugin.pytest_config import (
    given_options,
    is_asked_for,
    plan_of,
)


@pytest.fixture
def settings(pytester):
    """Read the settings of a run with these arguments."""
    return lambda *arguments: plan_of(pytester.parseconfig(*arguments)).settings


def test_command_line_wins_over_ini(pytester, settings):
    pytester.makeini("[pytest]\naq_batch_size = 0\naq_pairs = wfp8_afp8\naq_score_size = 5\n")
    found = settings("--aq-batch-size=3", "--aq-score-size=6")
    assert (found.batch_size, found.score_size, found.pairs) == (3, 6, ("wfp8_afp8",))


def test_command_line_switches_off_what_ini_switches_on(pytester, settings):
    pytester.makeini("[pytest]\naq_publish = yes\naq_resume = true\n")
    found = settings("--aq-no-publish")
    assert (found.publish, found.resume) == (False, True)


def test_ini_path_is_relative_to_the_root_directory(pytester, settings, monkeypatch):
    pytester.makeini("[pytest]\naq_report_dir = out\n")
    folder = pytester.mkdir("below")
    monkeypatch.chdir(folder)
    assert settings().report_dir == pytester.path / "out"
    assert settings("--aq-report-dir=out").report_dir == folder / "out"


def test_native_toml_values_have_their_types(pytester, settings):
    (pytester.path / "held.txt").write_text("A dog runs over the beach.\n")
    pytester.makepyprojecttoml(
        """
        [tool.pytest]
        aq_batch_size = 4
        aq_effective_bits = 4.5
        aq_pairs = ["wfp8_afp8", "wint8_aint8"]
        aq_schemes = ["all"]
        aq_held_out = "held.txt"
        aq_record_host = true
        aq_publish = false
        aq_dtype = "bf16"
        aq_shard = "1/4"
        """
    )
    found = settings()
    assert (found.batch_size, found.effective_bits, found.dtype) == (4, 4.5, "bf16")
    assert (found.pairs, found.schemes) == (("wfp8_afp8", "wint8_aint8"), ("all",))
    assert (found.record_host, found.publish, str(found.shard)) == (True, False, "1/4")
    assert found.held_out == pytester.path / "held.txt"


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("aq_batch_size", '"4"', "aq_batch_size"),
        ("aq_batch_size", "0", "ini option aq_batch_size: 0 is not allowed"),
        ("aq_pairs", '"wfp8_afp8"', "aq_pairs"),
        ("aq_publish", "1", "aq_publish"),
    ],
)
def test_toml_value_of_another_type_is_refused_with_its_name(pytester, settings, name, value, part):
    pytester.makepyprojecttoml(f"[tool.pytest]\n{name} = {value}\n")
    with pytest.raises(pytest.UsageError) as caught:
        settings()
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("ini", "arguments", "message"),
    [
        ("", ["--aq-batch-size=0"], "--aq-batch-size: '0' is not allowed; give a whole number"),
        ("aq_batch_size = none", [], "ini option aq_batch_size: "),
        ("aq_dtype = fp8", [], "ini option aq_dtype: 'fp8' is not allowed; give auto, fp32"),
        ("aq_export = on", [], "--aq-export (or its ini option) exports schemes"),
        ("", ["--aq-pairs=wint4_aint9"], "pair 'wint4_aint9' is unknown"),
    ],
)
def test_bad_value_is_a_usage_error_that_names_its_origin(
    pytester, settings, ini, arguments, message
):
    pytester.makeini(f"[pytest]\n{ini}\n")
    with pytest.raises(pytest.UsageError) as caught:
        settings(*arguments)
    assert str(caught.value).startswith(message)


def test_plan_is_built_once(pytester):
    config = pytester.parseconfig("--aq-pairs=wfp8_afp8")
    assert plan_of(config) is plan_of(config)
    assert plan_of(config).root == pytester.path / "reports" / "tmp"


def test_only_options_of_the_command_line_make_a_run_ours(pytester):
    pytester.makeini("[pytest]\naq_batch_size = 3\n")
    assert not is_asked_for(pytester.parseconfig())
    config = pytester.parseconfig("--aq-seed=1", "--aq-no-publish")
    assert is_asked_for(config)
    assert given_options(config) == (BY_NAME["seed"],)


# The root directory


@pytest.fixture
def other_project(pytester):
    """A neighbour of the current project, with an ini file and a ``conf`` folder."""
    here, other = pytester.mkdir("here"), pytester.mkdir("other")
    (here / "test_mine.py").write_text("")
    (here / "pytest.ini").write_text("[pytest]\n")
    (other / "pytest.ini").write_text("[pytest]\n")
    (other / "conf" / "quant_pair").mkdir(parents=True)
    return here


def test_root_directory_found_through_an_options_path_is_refused(
    pytester, other_project, monkeypatch
):
    monkeypatch.chdir(other_project)
    config = pytester.parseconfig("--aq-conf", "../other/conf")
    assert config.rootpath == other_project.parent / "other"
    with pytest.raises(pytest.UsageError) as caught:
        plan_of(config)
    assert str(caught.value) == (
        "--aq-conf ../other/conf: pytest took this path for a test path and set its root "
        f"directory to {config.rootpath}; write --aq-conf=../other/conf"
    )


@pytest.mark.parametrize("arguments", [["--aq-conf=../other/conf"], ["--aq-conf", "conf"]])
def test_root_directory_of_ones_own_is_accepted(pytester, other_project, monkeypatch, arguments):
    (other_project / "conf" / "quant_pair").mkdir(parents=True)
    monkeypatch.chdir(other_project)
    config = pytester.parseconfig(*arguments)
    assert plan_of(config).root == other_project / "reports" / "tmp"
