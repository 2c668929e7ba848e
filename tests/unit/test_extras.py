"""The extra ``[measure]``."""

import sys

import pytest
from pytest_autoquant import extras
from pytest_autoquant.errors import UsageError


def test_complete_environment_is_accepted():
    assert extras.missing_modules() == ()
    extras.require_measure("measuring")


def test_missing_modules_are_named_with_the_install_command(monkeypatch):
    monkeypatch.setattr(extras, "MEASURE_MODULES", ("torch", "aq_absent_one", "aq_absent_two"))
    with pytest.raises(UsageError) as error:
        extras.require_measure("measuring")
    assert str(error.value) == (
        "measuring needs aq_absent_one, aq_absent_two, which this Python does not have; install "
        "the extra: pip install 'pytest-autoquant[measure]'"
    )


def test_looking_for_modules_imports_none(monkeypatch):
    monkeypatch.setattr(extras, "MEASURE_MODULES", ("antigravity",))
    assert extras.missing_modules() == ()
    assert "antigravity" not in sys.modules
