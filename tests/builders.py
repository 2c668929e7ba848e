"""Builders that tests of several rooms share."""

from dataclasses import replace
from pathlib import Path

from pytest_autoquant.options.run_plan import RunPlan
from pytest_autoquant.options.settings import RawValue, read_settings


def changed(record, part, **values):
    """Return a record with some fields of one of its parts replaced."""
    return replace(record, **{part: replace(getattr(record, part), **values)})


def settings_of(*, in_ini=False, **values):
    """Read settings from raw values by option name, as on the command line or in the ini file."""
    return read_settings(
        lambda option: RawValue(
            value=values.get(option.name),
            origin=f"ini option {option.ini}" if in_ini else option.flag,
            is_on_command_line=not in_ini,
        )
    )


def run_plan(rootdir=Path(), **values):
    """Plan a run from raw option values on the command line."""
    return RunPlan.of(settings_of(**values), rootdir)
