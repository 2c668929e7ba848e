"""The worker's part: skip what cannot run, measure, attach the outcome to the test report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autoquant.errors import AutoquantError, MeasurementError
from pytest_autoquant.plugin.gpus import pin
from pytest_autoquant.plugin.pytest_config import (
    CASE_FIXTURE,
    COMBINATION_FIXTURE,
    DEALT_INPUT,
    EARLIER_INPUT,
    GPU_INPUT,
    NEIGHBOURS_INPUT,
    SCHEME_FIXTURE,
    as_failure,
    failure,
    is_flag_set,
    param,
    session_of,
)
from pytest_autoquant.scoring.progress import ProgressLine

if TYPE_CHECKING:
    from pytest_autoquant.grid.case import Case, Combination, SchemeCase
    from pytest_autoquant.manifests.outcomes import StructureCheck
    from pytest_autoquant.manifests.scheme_manifest import SchemeManifest
    from pytest_autoquant.manifests.sensitivity_manifest import Manifest
    from pytest_autoquant.plugin.outcome import Message
    from pytest_autoquant.plugin.session import AutoquantSession
    from pytest_autoquant.scoring.runner import MeasurementRunner

_MESSAGE: pytest.StashKey[Message] = pytest.StashKey()
_RERUN = pytest.StashKey[str]()
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
        from pytest_autoquant.plugin.outcome import manifest_message

        progress.start(case.test_id)
        with _told(item, case):
            manifest, state = session_of(item.config).measure(case, _bench(item.config))
        rerun = item.stash.get(_RERUN, None)
        item.stash[_MESSAGE] = replace(manifest_message(manifest), rerun=rerun)
        item.stash[_STATE] = state
        return manifest

    yield measure
    progress.stop()


@pytest.fixture
def aq_derive(request: pytest.FixtureRequest) -> Iterator[Callable[[SchemeCase], SchemeManifest]]:
    """Derive a scheme and return its manifest; its checkpoint is written with ``--aq-export``."""
    item = request.node
    progress = _progress(item.config)

    def derive(case: SchemeCase) -> SchemeManifest:
        from pytest_autoquant.plugin.outcome import scheme_message

        progress.start(case.test_id)
        with _told(item, case):
            manifest = session_of(item.config).deriver(_bench(item.config)).derive(case)
        item.stash[_MESSAGE] = scheme_message(manifest)
        return manifest

    yield derive
    progress.stop()


@pytest.fixture
def aq_check(request: pytest.FixtureRequest) -> Callable[[Combination], StructureCheck]:
    """Resolve a combination, have ModelOpt validate it, and return its status."""
    item = request.node

    def check(combination: Combination) -> StructureCheck:
        with as_failure():
            line = session_of(item.config).structure(combination, _bench(item.config))
        from pytest_autoquant.plugin.outcome import structure_message

        item.stash[_MESSAGE] = structure_message(line)
        return line

    return check


@contextmanager
def _told(item: pytest.Item, case: Case | SchemeCase) -> Iterator[None]:
    """Attach what a case raised; a user's mistake fails it with the message alone."""
    from pytest_autoquant.plugin.outcome import error_message

    try:
        yield
    except AutoquantError as error:
        item.stash[_MESSAGE] = error_message(case, str(error))
        _show_cause(item, error)
        raise failure(error) from None
    except Exception as error:
        item.stash[_MESSAGE] = error_message(case, f"{type(error).__name__}: {error}")
        raise


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell the session which cases are selected, and keep those of its shard."""
    if not any(_is_ours(item) for item in items):
        return
    session = session_of(config)
    cases = [case for item in items if (case := param(item, CASE_FIXTURE)) is not None]
    own = {case.case_id for case in session.select(cases, workers=_grouped_workers(config))}
    kept = [item for item in items if _is_in_shard(item, session, own)]
    if len(kept) < len(items):
        gone = [item for item in items if not _is_in_shard(item, session, own)]
        config.hook.pytest_deselected(items=gone)
        items[:] = kept


def _is_ours(item: pytest.Item) -> bool:
    ours = (CASE_FIXTURE, COMBINATION_FIXTURE, SCHEME_FIXTURE)
    return any(param(item, name) is not None for name in ours)


def _is_in_shard(item: pytest.Item, session: AutoquantSession, own: set[str]) -> bool:
    case, combination = param(item, CASE_FIXTURE), param(item, COMBINATION_FIXTURE)
    scheme = param(item, SCHEME_FIXTURE)
    if scheme is not None:
        return session.takes_scheme(scheme)
    if case is not None:
        return case.case_id in own
    return combination is None or session.takes(combination)


def _grouped_workers(config: pytest.Config) -> int:
    """Return among how many workers the controller deals cases by part; 1 where it does not."""
    given = getattr(config, "workerinput", {})
    return int(given["workercount"]) if given.get(DEALT_INPUT) else 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a case that cannot run here, with the true reason, through a skip marker."""
    case, scheme = param(item, CASE_FIXTURE), param(item, SCHEME_FIXTURE)
    if item.get_closest_marker("skip") is not None or case is scheme is None:
        return
    try:
        bench, bits = _bench(item.config), None
        if case is None:
            support = session_of(item.config).deriver(bench).support(scheme)
        else:
            support = bench.support(case.combination)
            bits = bench.config(case.combination).effective_bits
    except AutoquantError:
        return  # the case itself fails with the message
    if not support.is_supported:
        from pytest_autoquant.plugin.outcome import skip_message

        item.stash[_MESSAGE] = skip_message(case or scheme, support, bits)
        item.add_marker(pytest.mark.skip(reason=support.skip_reason))
    elif case is not None and is_flag_set(item.config, "resume"):
        _resume(item, case)


def _resume(item: pytest.Item, case: Case) -> None:
    """Skip a case that was measured on the same inputs, or remember what changed."""
    session = session_of(item.config)
    try:
        changes = session.changes(case, _bench(item.config))
    except AutoquantError:
        return  # the case itself fails with the message
    if changes:
        item.stash[_RERUN] = ", ".join(map(str, changes))
    elif changes is not None:
        from pytest_autoquant.plugin.outcome import kept_message

        item.stash[_MESSAGE] = kept_message(case)
        item.add_marker(pytest.mark.skip(reason="kept: measured before on the same inputs"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Attach the outcome as a JSON string: it survives the way to an xdist controller."""
    report = yield
    is_outcome = report.when == "call" or report.skipped
    if is_outcome and _MESSAGE in item.stash:
        marker = item.get_closest_marker("aq_tolerance")
        given = None if marker is None else _given(marker)
        report.autoquant = replace(item.stash[_MESSAGE], tolerances=given).dump()
        report.autoquant_state = item.stash.get(_STATE, None)
        del item.stash[_MESSAGE]
    return report


def _given(marker: pytest.Mark) -> dict[str, Any]:
    """Return a marker's tolerances; what has no name is refused like a wrong one."""
    return {**{f"argument {i}": value for i, value in enumerate(marker.args, 1)}, **marker.kwargs}


def _bench(config: pytest.Config) -> MeasurementRunner:
    session = session_of(config)
    if not session.has_bench:
        _prepare(config, session)
    return session.bench(_progress(config), _warn)


def _prepare(config: pytest.Config, session: AutoquantSession) -> None:
    """Before torch is imported: one GPU for this worker, and what it measured before."""
    given = getattr(config, "workerinput", {})
    if GPU_INPUT in given and session.settings.device in ("auto", "cuda"):
        pin(given[GPU_INPUT])
    session.workers_here = given.get(NEIGHBOURS_INPUT, 1)
    if EARLIER_INPUT in given:
        from pytest_autoquant.regression.resume import load_earlier

        session.earlier = load_earlier(given[EARLIER_INPUT])


def _show_cause(item: pytest.Item, error: AutoquantError) -> None:
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
