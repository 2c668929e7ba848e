"""Settings: raw values are checked option by option, and defaults fill the rest."""

from dataclasses import asdict
from pathlib import Path

import pytest
from builders import settings_of
from pytest_autoquant.errors import UsageError
from pytest_autoquant.options.table import OPTIONS


def test_unset_options_have_their_defaults_and_unset_flags_are_off():
    expected = {o.name: False if o.is_flag else o.default for o in OPTIONS}
    assert asdict(settings_of()) == expected | {
        "cache": None,
        "check_scores": None,
        "whole_model_kl": None,
    }


def test_flag_that_a_run_decides_can_be_switched_on_and_off():
    given = [settings_of(in_ini=True, check_scores=raw).check_scores for raw in (True, False)]
    assert given == [True, False]


@pytest.mark.parametrize(
    ("in_ini", "origin"), [(False, "--aq-batch-size"), (True, "ini option aq_batch_size")]
)
def test_error_starts_with_where_the_value_was_written(in_ini, origin):
    with pytest.raises(UsageError) as caught:
        settings_of(in_ini=in_ini, batch_size="0")
    said = f"{origin}: '0' is not allowed; give a whole number of at least 1"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("values", "folder"),
    [
        ({}, "repo/reports/tmp"),
        ({"publish": True}, "repo/reports"),
        ({"report_dir": "elsewhere/out"}, "elsewhere/out"),
    ],
)
def test_report_folder_follows_the_options(values, folder):
    assert settings_of(**values).report_root(Path("repo")) == Path(folder)


def test_seed_counts_only_for_random_weights():
    assert settings_of(in_ini=True, seed="7").random_seed is None
    assert settings_of(seed="7", weights="random").random_seed == 7
