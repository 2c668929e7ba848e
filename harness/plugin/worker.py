"""The worker's part: skip what cannot run, measure, attach the outcome to the test report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import HarnessError, MeasurementError
from harness.plugin.access import (
    CASE_FIXTURE,
    as_failure,
    failure,
    param,
    session_of,
)
from harness.progress import ProgressLine

if TYPE_CHECKING:
    from harness.bench import Bench
    from harness.case import Case, Combination
    from harness.manifest import Manifest
    from harness.results import StructureLine

_MESSAGE = pytest.StashKey[str]()
_STATE = pytest.StashKey["bytes | None"]()
_PROGRESS = pytest.StashKey[ProgressLine]()


class AutoquantWarning(UserWarning):
    """Something about the inputs that a reader of the results has to know."""


@pytest.fixture
def aq_measure(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], Manifest]]:
    """Measure a case and return its manifest; the model is loaded once per worker."""
    item = request.node
    progress = _progress(item.config)

    def measure(case: Case) -> Manifest:
        from harness.session import error_message, manifest_message

        progress.start(case.id)
        try:
            manifest, state = session_of(item.config).measure(case, _bench(item.config))
        except HarnessError as error:
            item.stash[_MESSAGE] = error_message(case, str(error))
            _show_cause(item, error)
            raise failure(error) from None
        except Exception as error:
            item.stash[_MESSAGE] = error_message(case, f"{type(error).__name__}: {error}")
            raise
        item.stash[_MESSAGE], item.stash[_STATE] = manifest_message(manifest), state
        return manifest

    yield measure
    progress.stop()


@pytest.fixture
def aq_check(request: pytest.FixtureRequest) -> Callable[[Combination], StructureLine]:
    """Resolve a combination, have ModelOpt validate it, and return its status."""
    item = request.node

    def check(combination: Combination) -> StructureLine:
        with as_failure():
            line = session_of(item.config).structure(combination, _bench(item.config))
        from harness.session import structure_message

        item.stash[_MESSAGE] = structure_message(line)
        return line

    return check


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell the session which cases are selected, so that aliases have someone to point at."""
    selected = [param(item, CASE_FIXTURE) for item in session.items]
    if any(case is not None for case in selected):
        session_of(session.config).select(case for case in selected if case is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a case that cannot run here, with the true reason, through a skip marker."""
    case = param(item, CASE_FIXTURE)
    if case is None or item.get_closest_marker("skip") is not None:
        return
    try:
        support = _bench(item.config).support(case.combination)
    except HarnessError:
        return  # the case itself fails with the message
    if not support.is_supported:
        from harness.session import skip_message

        item.stash[_MESSAGE] = skip_message(case, support)
        item.add_marker(pytest.mark.skip(reason=support.skip_reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Attach the outcome as a JSON string: it survives the way to an xdist controller."""
    report = yield
    is_outcome = report.when == "call" or report.skipped
    if is_outcome and _MESSAGE in item.stash:
        report.autoquant = item.stash[_MESSAGE]
        report.autoquant_state = item.stash.get(_STATE, None)
        del item.stash[_MESSAGE]
    return report


def _bench(config: pytest.Config) -> Bench:
    return session_of(config).bench(_progress(config), _warn)


def _show_cause(item: pytest.Item, error: HarnessError) -> None:
    """Keep the library's own traceback at hand, in a section of its own."""
    if isinstance(error, MeasurementError) and error.trace:
        item.add_report_section("call", "traceback in the library", error.trace)


def _warn(message: str) -> None:
    warnings.warn(AutoquantWarning(message), stacklevel=2)


def _progress(config: pytest.Config) -> ProgressLine:
    if _PROGRESS not in config.stash:
        config.stash[_PROGRESS] = ProgressLine(_terminal_writer(config))
    return config.stash[_PROGRESS]


def _terminal_writer(config: pytest.Config) -> Callable[[str], None]:
    """Return a function that writes past pytest's capture, and nowhere but on a terminal."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or not reporter.isatty:
        return lambda text: None

    def write(text: str) -> None:
        if capture is None:
            reporter.write(text, flush=True)
            return
        with capture.global_and_fixture_disabled():
            reporter.write(text, flush=True)

    return write
