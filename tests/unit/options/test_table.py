"""The table of options: names, defaults and ini types agree with each other."""

from dataclasses import fields

import pytest
from pytest_autoquant.manifests.fingerprint import FINGERPRINT_FIELDS
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.options.table import BY_NAME, OPTIONS

#: What pytest returns for an ini value of each type, in the form of our options' defaults.
INI_TYPES = {"string": str, "bool": bool, "int": int, "float": float, "args": tuple}

#: Options without which a run measures nothing less.
every_option = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


def test_options_and_settings_have_the_same_names_in_the_same_order():
    assert sorted(BY_NAME) == sorted(field.name for field in fields(Settings))
    assert len(BY_NAME) == len(OPTIONS)


def test_no_spelling_is_used_twice():
    spellings = [text for option in OPTIONS for text in (option.flag, option.off_flag)]
    assert len({*spellings}) == 2 * len(OPTIONS)


@pytest.mark.parametrize(
    ("name", "flag", "off_flag", "ini"),
    [
        ("batch_size", "--aq-batch-size", "--aq-no-batch-size", "aq_batch_size"),
        ("structure_only", "--aq-structure-only", "--aq-no-structure-only", "aq_structure_only"),
    ],
)
def test_flags_have_dashes_and_ini_names_underscores(name, flag, off_flag, ini):
    option = BY_NAME[name]
    assert (option.flag, option.off_flag, option.ini) == (flag, off_flag, ini)


@every_option
def test_default_is_allowed_and_has_the_ini_type(option):
    if option.default in (None, ()):
        return
    assert option.kind.parse(option.default, option.flag) == option.default
    assert type(option.default) is INI_TYPES[option.kind.ini_type]


@every_option
def test_flag_has_no_default_and_no_placeholder(option):
    assert option.is_flag == (option.kind.ini_type == "bool")
    assert not option.is_flag or (option.default, option.kind.metavar) == (None, "")


@every_option
def test_help_is_a_phrase_that_argparse_can_format(option):
    assert option.help_text.startswith(option.help)
    assert option.help
    assert not option.help.endswith(".")
    assert "%" not in option.help_text


def test_help_ends_with_the_default():
    assert BY_NAME["batch_size"].help_text == "most captions in a batch (default: 32)"
    assert BY_NAME["sizes"].help_text == BY_NAME["sizes"].help
    assert BY_NAME["resume"].help_text == BY_NAME["resume"].help


def test_fields_that_a_baseline_may_differ_in_are_those_of_the_fingerprint():
    allowed = BY_NAME["baseline_allow"].kind.parse(list(FINGERPRINT_FIELDS), "")
    assert allowed == FINGERPRINT_FIELDS
