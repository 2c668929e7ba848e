"""How the hooks reach options and the session, and how they report a user's mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.options.settings import OPTIONS, TRUE, Option, read_settings

if TYPE_CHECKING:
    from pytest_autoquant.plugin.session import AutoquantSession

CASE_FIXTURE, COMBINATION_FIXTURE, SCHEME_FIXTURE = "aq_case", "aq_combination", "aq_scheme"
DEALT_INPUT, EARLIER_INPUT = "aq_dealt", "aq_earlier"
GPU_INPUT, NEIGHBOURS_INPUT = "aq_gpu", "aq_neighbours"
"""What the controller tells each worker: whether cases come by part, what was measured before,
which GPU is its own, and how many workers its host has."""

_SESSION = pytest.StashKey["AutoquantSession"]()


def session_of(config: pytest.Config) -> AutoquantSession:
    """Return the run's session, built and checked on first use."""
    if _SESSION not in config.stash:
        from pytest_autoquant.plugin.session import AutoquantSession

        with as_usage_error():
            settings = read_settings(lambda option: _lookup(config, option))
            config.stash[_SESSION] = AutoquantSession(settings, config.rootpath)
    return config.stash[_SESSION]


def has_session(config: pytest.Config) -> bool:
    """Whether anything in this run asked for the session."""
    return _SESSION in config.stash


def check_early(config: pytest.Config) -> None:
    """Refuse bad input before anything is collected; ask torch only where the device matters."""
    with as_usage_error():
        _ = session_of(config).baselines
    settings = session_of(config).settings
    if not settings.gpu_only and settings.device in ("auto", "cpu"):
        return
    from pytest_autoquant.models.device import resolve_device

    with as_usage_error():
        device = resolve_device(settings.device)
        if settings.gpu_only and settings.device == "auto" and device.type == "cpu":
            raise AutoquantError(
                "--gpu-only: torch sees no CUDA device; use a GPU runner, or say "
                "--aq-device cpu to run AutoQuant on the CPU"
            )


def is_asked_for(config: pytest.Config) -> bool:
    """Whether any of our options is on the command line; ini alone never touches unrelated runs."""
    return any(config.getoption(option.ini, None) is not None for option in OPTIONS)


def is_configured(config: pytest.Config) -> bool:
    """Whether any of our options is set in ini."""
    return any(config.getini(option.ini) is not None for option in OPTIONS)


def is_flag_set(config: pytest.Config, name: str) -> bool:
    """Whether a flag is on; an ini value that is no flag is refused when a case is collected."""
    (option,) = (option for option in OPTIONS if option.name == name)
    value, _ = _lookup(config, option)
    return value is True or str(value).lower() in TRUE


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
    except AutoquantError as error:
        raise pytest.UsageError(str(error)) from error


@contextmanager
def as_failure() -> Iterator[None]:
    """Turn a user's mistake into a failed case with one message and no traceback."""
    try:
        yield
    except AutoquantError as error:
        raise failure(error) from None


def failure(error: AutoquantError) -> BaseException:
    """Return the exception that fails a test with the message alone."""
    return pytest.fail.Exception(str(error), pytrace=False)


def _lookup(config: pytest.Config, option: Option) -> tuple[Any, str]:
    given = config.getoption(option.ini, None)
    if given is not None:
        return given, option.flag
    from_ini = config.getini(option.ini)
    if from_ini is not None and option.kind == "path":
        from_ini = str(config.rootpath / from_ini)
    return from_ini, f"ini option {option.ini}"
