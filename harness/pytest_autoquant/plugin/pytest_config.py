"""Options and state of a run, reached from its ``pytest.Config``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autoquant.errors import AutoquantError, UsageError

if TYPE_CHECKING:
    from pytest_autoquant.options.run_plan import RunPlan
    from pytest_autoquant.options.settings import RawValue
    from pytest_autoquant.options.table import Option
    from pytest_autoquant.phases import PhaseClock

CASE, COMBINATION, SCHEME = "aq_case", "aq_combination", "aq_scheme"
PARAMETERS = (CASE, COMBINATION, SCHEME)

_PLAN = pytest.StashKey["RunPlan"]()
_IS_DECLARED = pytest.StashKey[bool]()
_CLOCK = pytest.StashKey["PhaseClock"]()

#: Files that pytest takes its configuration from, as of pytest 9.
_INI_FILES = (
    "pytest.toml",
    ".pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "pyproject.toml",
    "tox.ini",
    "setup.cfg",
)

#: Paths that are used after tests began, which may change the working directory.
_WRITTEN_LATER = ("report_dir", "baseline", "tape_dir", "offload_dir", "captions")


def add_options(parser: pytest.Parser, config: pytest.Config) -> None:
    """Declare every option on the command line and in ini."""
    from pytest_autoquant.options.table import OPTIONS

    config.stash[_IS_DECLARED] = True
    group = parser.getgroup("autoquant", "quantization sensitivity with ModelOpt AutoQuant")
    for option in OPTIONS:
        if option.is_flag:
            group.addoption(
                option.flag,
                dest=option.ini,
                action="store_true",
                default=None,
                help=option.help_text,
            )
            group.addoption(
                option.off_flag,
                dest=option.ini,
                action="store_false",
                help=f"switch {option.flag} off where the ini file switches it on",
            )
        else:
            group.addoption(
                option.flag,
                dest=option.ini,
                metavar=option.kind.metavar,
                default=None,
                help=option.help_text,
            )
        parser.addini(option.ini, option.help_text, type=option.kind.ini_type, default=None)


def plan_of(config: pytest.Config) -> RunPlan:
    """Return what the run is asked for, built and checked on first use.

    Raises:
        pytest.UsageError: an option or what it names cannot be used.
    """
    if _PLAN not in config.stash:
        from pytest_autoquant.options.run_plan import RunPlan
        from pytest_autoquant.options.settings import read_settings

        with as_usage_error():
            settings = read_settings(lambda option: _lookup(config, option))
            _check_rootdir(config)
            config.stash[_PLAN] = RunPlan.of(settings, config.rootpath)
    return config.stash[_PLAN]


def clock_of(config: pytest.Config) -> PhaseClock:
    """Return the clock of this process, started on first use."""
    if _CLOCK not in config.stash:
        from pytest_autoquant.phases import PhaseClock

        config.stash[_CLOCK] = PhaseClock()
    return config.stash[_CLOCK]


def given_options(config: pytest.Config) -> tuple[Option, ...]:
    """Return our options on the command line; those of the ini file alone make no run ours."""
    if not any(name.startswith("aq_") for name in vars(config.option)):
        return ()
    from pytest_autoquant.options.table import OPTIONS

    return tuple(o for o in OPTIONS if config.getoption(o.ini, None) not in (None, False))


def typed_options(config: pytest.Config) -> tuple[Option, ...]:
    """Return those of our options that the user typed; ``addopts`` is a project's standing wish."""
    words = config.invocation_params.args
    return tuple(
        option
        for option in given_options(config)
        if any(word == option.flag or word.startswith(f"{option.flag}=") for word in words)
    )


def is_configured(config: pytest.Config) -> bool:
    """Whether any of our options is set, on the command line or in ini."""
    return is_asked_for(config) or _IS_DECLARED in config.stash


def is_end_of_test(report: pytest.TestReport) -> bool:
    """Whether a report ends a test.

    Attempts that pytest-rerunfailures repeats and subtests (their reports have a context) do not.
    """
    if str(report.outcome) == "rerun" or hasattr(report, "context"):
        return False
    return report.when == "call" or (report.when == "setup" and not report.passed)


def is_asked_for(config: pytest.Config) -> bool:
    """Whether any of our options is on the command line."""
    return bool(given_options(config))


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is an xdist worker."""
    return hasattr(config, "workerinput")


def only_looks(config: pytest.Config) -> bool:
    """Whether pytest was asked to show what it would do instead of doing it."""
    return any(config.getoption(name, False) for name in ("collectonly", "setuponly", "setupplan"))


def parameter(item: pytest.Item, name: str) -> Any:
    """Return the value that parametrizes ``name`` in ``item``, None if it does not."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(name)


@contextmanager
def as_usage_error() -> Iterator[None]:
    """Turn our error into pytest's usage error: one message, exit status 4."""
    try:
        yield
    except AutoquantError as error:
        raise pytest.UsageError(str(error)) from error


@contextmanager
def as_failure() -> Iterator[None]:
    """Turn our error into a failed test with one message and no traceback."""
    try:
        yield
    except AutoquantError as error:
        raise failure(error) from None


def failure(error: AutoquantError) -> BaseException:
    """Return the exception that fails a test with the message alone."""
    return pytest.fail.Exception(str(error), pytrace=False)


def _lookup(config: pytest.Config, option: Option) -> RawValue:
    from pytest_autoquant.options.kinds import PATH
    from pytest_autoquant.options.settings import RawValue

    given = config.getoption(option.ini, None)
    if given is not None:
        flag = option.off_flag if given is False else option.flag
        if option.name in _WRITTEN_LATER:
            given = _below(config.invocation_params.dir, given)
        return RawValue(value=given, origin=flag, is_on_command_line=True)
    value = _ini_value(config, option)
    if value is not None and option.kind is PATH:
        inipath = config.inipath
        value = _below(config.rootpath if inipath is None else inipath.parent, value)
    return RawValue(value=value, origin=f"ini option {option.ini}", is_on_command_line=False)


def _below(folder: Path, value: str) -> str:
    """Return a path relative to a folder as an absolute one; an empty value stays empty."""
    return str(folder / Path(value).expanduser()) if value.strip() else value


def _ini_value(config: pytest.Config, option: Option) -> Any:
    """Return the typed ini value, None if it is not set or nothing of ours is in the ini file.

    Raises:
        UsageError: a value of another type.
    """
    if _IS_DECLARED not in config.stash:
        return None
    try:
        return config.getini(option.ini)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise UsageError(f"ini option {option.ini}: {error}; give {option.kind.allowed}") from None


def _check_rootdir(config: pytest.Config) -> None:
    """Refuse a root directory that pytest found through a path meant for one of our options.

    pytest does not know our options when it looks for its ini file, so it takes ``--aq-conf DIR``
    for an option without a value and a test path.

    Raises:
        UsageError: with the spelling that works.
    """
    from pytest_autoquant.options.kinds import PATH

    here, root = config.invocation_params.dir, config.rootpath
    arguments = config.invocation_params.args
    for option in given_options(config):
        value = config.getoption(option.ini)
        if option.kind is not PATH or value not in arguments:
            continue
        given = (here / Path(value)).resolve()
        is_moved = not here.is_relative_to(root) or (
            root != here and (config.inipath is None or _has_nearer_ini(here, root))
        )
        if is_moved and given.is_relative_to(root) and not given.is_relative_to(here):
            raise UsageError(
                f"{option.flag} {value}: pytest took this path for a test path and set its root "
                f"directory to {root}; write {option.flag}={value}"
            )


def _has_nearer_ini(here: Path, root: Path) -> bool:
    """Whether a folder from ``here`` up to below ``root`` has an ini file of pytest."""
    folders = [folder for folder in (here, *here.parents) if root in folder.parents]
    return any(_configures_pytest(folder / name) for folder in folders for name in _INI_FILES)


def _configures_pytest(path: Path) -> bool:
    if not path.is_file():
        return False
    if "pytest" in path.name:
        return True
    return (
        re.search(r"^\[(tool[.:])?pytest\b", path.read_text("utf-8", "replace"), re.M) is not None
    )
