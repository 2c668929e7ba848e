"""How the hooks reach options and the session, and how they report a user's mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import HarnessError
from harness.settings import OPTIONS, Option, read_settings

if TYPE_CHECKING:
    from harness.session import AutoquantSession

CASE_FIXTURE, COMBINATION_FIXTURE = "aq_case", "aq_combination"

_SESSION = pytest.StashKey["AutoquantSession"]()


def session_of(config: pytest.Config) -> AutoquantSession:
    """Return the run's session, built and checked on first use."""
    if _SESSION not in config.stash:
        from harness.session import AutoquantSession

        with as_usage_error():
            settings = read_settings(lambda option: _lookup(config, option))
            config.stash[_SESSION] = AutoquantSession(settings, config.rootpath)
    return config.stash[_SESSION]


def has_session(config: pytest.Config) -> bool:
    """Whether anything in this run asked for the session."""
    return _SESSION in config.stash


def is_asked_for(config: pytest.Config) -> bool:
    """Whether any of our options is set, on the command line or in ini."""
    return any(_lookup(config, option)[0] is not None for option in OPTIONS)


def is_flag_set(config: pytest.Config, name: str) -> bool:
    """Whether a flag is on; a bad ini value is a usage error."""
    if not is_asked_for(config):
        return False
    return bool(getattr(session_of(config).settings, name))


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is an xdist worker."""
    return hasattr(config, "workerinput")


def param(item: pytest.Item, fixture: str) -> Any:
    """Return the value that parametrizes ``fixture`` in ``item``, None if it does not."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(fixture)


@contextmanager
def as_usage_error() -> Iterator[None]:
    """Turn a user's mistake into pytest's usage error: one message, exit status 4."""
    try:
        yield
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


@contextmanager
def as_failure() -> Iterator[None]:
    """Turn a user's mistake into a failed case with one message and no traceback."""
    try:
        yield
    except HarnessError as error:
        pytest.fail(str(error), pytrace=False)


def _lookup(config: pytest.Config, option: Option) -> tuple[Any, str]:
    given = config.getoption(option.ini, None)
    if given is not None:
        return given, option.flag
    from_ini = config.getini(option.ini)
    if from_ini is not None and option.kind == "path":
        from_ini = str(config.rootpath / from_ini)
    return from_ini, f"ini option {option.ini}"
