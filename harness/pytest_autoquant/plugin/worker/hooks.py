"""The worker's part of a test: skip its case, or measure it and attach the outcome."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autoquant.errors import AnotherModelError, AutoquantError, MeasurementError, UsageError
from pytest_autoquant.extras import require_measure
from pytest_autoquant.grid.case import Case, Combination, SchemeCase
from pytest_autoquant.manifests.records.outcomes import (
    FailedCase,
    KeptCase,
    SkippedCase,
    StructureCheck,
)
from pytest_autoquant.plugin.gpus import pin, pin_share
from pytest_autoquant.plugin.messages.outcome import (
    Checked,
    DerivedScheme,
    Failed,
    Kept,
    MeasuredCase,
    Outcome,
    Refused,
    Skipped,
    WorkerReport,
    dump_report,
)
from pytest_autoquant.plugin.messages.worker_input import WorkerInput, worker_input_of
from pytest_autoquant.plugin.pytest_config import (
    CASE,
    SCHEME,
    as_failure,
    clock_of,
    failure,
    is_end_of_test,
    is_worker,
    parameter,
    plan_of,
)
from pytest_autoquant.plugin.worker.progress_line import ProgressLine, terminal_writer
from pytest_autoquant.plugin.worker.selection import Selection
from pytest_autoquant.regression.tolerances import check_marker
from pytest_autoquant.text import in_words

if TYPE_CHECKING:
    from pytest_autoquant.export.pipeline import SchemeRunner
    from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest
    from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
    from pytest_autoquant.modelopt_support.status import Support
    from pytest_autoquant.options.run_plan import RunPlan
    from pytest_autoquant.scoring.runner import MeasurementRunner

_OUTCOMES: pytest.StashKey[list[Outcome]] = pytest.StashKey()
_STATE = pytest.StashKey["bytes | None"]()
_RERUN = pytest.StashKey[str]()
_REFUSED = pytest.StashKey[str]()


class AutoquantWarning(UserWarning):
    """Something about the inputs that a reader of the results has to know."""


def worker_of(config: pytest.Config) -> Worker:
    """Return the worker's part of the plugin in this process."""
    from pytest_autoquant.plugin import activate

    activate(config)  # a test may ask for a fixture while it runs
    worker: Any = config.pluginmanager.get_plugin("autoquant-worker")
    assert isinstance(worker, Worker)
    return worker


class Worker:
    """Skips and measures.

    Args:
        selection: which cases this process measures together.
    """

    def __init__(self, config: pytest.Config, selection: Selection) -> None:
        self._config = config
        self._selection = selection
        self._clock = clock_of(config)

    @cached_property
    def progress(self) -> ProgressLine:
        """The progress line; pytest's terminal exists only once every plugin is configured."""
        return ProgressLine(terminal_writer(self._config))

    @property
    def plan(self) -> RunPlan:
        """What the run is asked for."""
        return plan_of(self._config)

    @cached_property
    def runner(self) -> MeasurementRunner:
        """The measuring side, built on first use: here torch is imported.

        Raises:
            UsageError: the extra ``[measure]`` is not installed.
        """
        require_measure("measuring")
        given, settings = worker_input_of(self._config), self.plan.settings
        if given.gpu is not None and settings.device in ("auto", "cuda"):
            if settings.device_map == "auto":
                pin_share(given.gpu, given.workers_on_host)
            else:
                pin(given.gpu)  # before torch looks at the GPUs
        with self._clock.importing():
            from pytest_autoquant.scoring.runner import MeasurementRunner

        if not is_worker(self._config):
            given = self._input_here(given)
        runner = MeasurementRunner(
            settings,
            self.plan.source,
            self.progress,
            _warn,
            earlier=given.earlier,
            recorded=given.recorded,
            clock=self._clock,
            processes=given.workers_on_host,
        )
        if self._selection.assignment is not None:
            runner.assign(self._selection.assignment)
        return runner

    @cached_property
    def scheme_runner(self) -> SchemeRunner:
        """What turns scores into schemes and checkpoints.

        Raises:
            UsageError: no scheme is asked for.
        """
        from pytest_autoquant.export.pipeline import SchemeRunner

        plan = self.plan
        if plan.held_out is None:
            raise UsageError("no scheme is asked for; name some with --aq-schemes")
        return SchemeRunner(
            self.runner,
            held_out=plan.held_out,
            target=None if plan.settings.target == "none" else plan.settings.target,
            max_kl=plan.settings.max_kl,
            root=plan.root if plan.settings.export else None,
            may_replace=plan.settings.replace_export,
            load_in_vllm=plan.settings.load_vllm,
        )

    def _input_here(self, given: WorkerInput) -> WorkerInput:
        """Return what the controller in this process tells the worker in it."""
        from pytest_autoquant.plugin import controller_of

        controller = controller_of(self._config)
        return replace(given, earlier=controller.earlier, recorded=controller.recorded)

    @pytest.hookimpl(specname="pytest_runtest_setup", tryfirst=True)
    def pytest_forget_attempt(self, item: pytest.Item) -> None:
        """Forget the outcomes of an earlier attempt, and refuse a wrong marker."""
        item.stash[_OUTCOMES] = []
        self._check_marker(item)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a case that cannot run here, with the true reason.

        By then pytest has looked at ``skip``, ``skipif`` and ``xfail(run=False)``, in an
        implementation that is ``tryfirst``. It sets up fixtures afterwards, in one that it
        registered before this one.
        """
        case, scheme = parameter(item, CASE), parameter(item, SCHEME)
        if case is scheme is None:
            return
        # An error of ours is left to the case, which fails with the message.
        with suppress(AutoquantError), self._measuring(item.name):
            if case is None:
                self._skip_scheme(item, scheme)
            else:
                self._skip_case(item, case)

    def _check_marker(self, item: pytest.Item) -> None:
        marker = item.get_closest_marker("aq_tolerance")
        if marker is not None:
            with as_failure():
                check_marker(marker.args, marker.kwargs)

    def _skip_case(self, item: pytest.Item, case: Case) -> None:
        support = self.runner.support(case.combination)
        if not support.is_supported:
            bits = self.runner.bits(case.combination)
            self._skip(item, _skipped(case, support, bits))
        elif self.plan.settings.resume:
            self._resume(item, case)

    def _skip_scheme(self, item: pytest.Item, scheme: SchemeCase) -> None:
        """Skip a scheme that cannot be derived here; one that was asked for by name fails."""
        support = self.scheme_runner.support(scheme)
        if support.is_supported:
            return
        if self.plan.is_named(scheme):
            item.stash[_REFUSED] = f"scheme {scheme.test_id}: {support.skip_reason}"
        else:
            self._skip(item, _skipped(scheme, support, None))

    def _skip(self, item: pytest.Item, case: SkippedCase) -> None:
        _add(item, Skipped(case=case))
        pytest.skip(f"{case.status}: {case.reason}")

    def _resume(self, item: pytest.Item, case: Case) -> None:
        """Skip a case that was measured on the same inputs, or remember what changed."""
        changes = self.runner.changes(case)
        if changes:
            item.stash[_RERUN] = ", ".join(map(str, changes))
        elif changes is not None:
            _add(item, Kept(case=KeptCase(case_id=case.case_id)))
            pytest.skip("kept: measured before on the same inputs")

    def measure(self, item: pytest.Item, case: Case | str) -> Manifest:
        """Measure a case and attach its manifest to the test."""
        from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest

        if isinstance(case, str):
            case = self._named(item, case)
        with _attached(item, case), self._measuring(case.test_id):
            measured = self.runner.measure(case)
        manifest = dump_manifest(measured.manifest)
        _add(item, MeasuredCase(manifest=manifest, rerun=item.stash.get(_RERUN, None)))
        item.stash[_STATE] = measured.state
        return measured.manifest

    def _named(self, item: pytest.Item, name: str) -> Case:
        with as_failure():
            case = self.plan.case_named(name)
            support = self.runner.support(case.combination)
            bits = self.runner.bits(case.combination)
        if not support.is_supported:
            _add(item, Skipped(case=_skipped(case, support, bits)))
            pytest.skip(support.skip_reason)
        return case

    def derive(self, item: pytest.Item, case: SchemeCase | str) -> SchemeManifest:
        """Derive a scheme and attach its manifest to the test, also if only its export failed."""
        from pytest_autoquant.export.pipeline import UnexportedSchemeError
        from pytest_autoquant.manifests.records.scheme_manifest import dump_scheme

        if isinstance(case, str):
            with as_failure():
                case = self.plan.scheme_named(case)
        with _attached(item, case), self._measuring(case.test_id):
            if _REFUSED in item.stash:
                raise UsageError(item.stash[_REFUSED])
            try:
                with self._clock.phase("schemes"):
                    manifest = self.scheme_runner.derive(case)
            except UnexportedSchemeError as error:
                _add(item, DerivedScheme(manifest=dump_scheme(error.measured)))
                raise
        _add(item, DerivedScheme(manifest=dump_scheme(manifest)))
        return manifest

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Let a test that looks below a case compute as a case does."""
        is_below = "aq_runner" in getattr(item, "fixturenames", ())
        with self._threads() if is_below else nullcontext():
            return (yield)

    @contextmanager
    def _measuring(self, label: str) -> Iterator[None]:
        """Show progress until the block ends: pytest writes its result right after it."""
        self.progress.start(label)
        try:
            with self._threads():
                yield
        finally:
            self.progress.stop()

    def _threads(self) -> AbstractContextManager[None]:
        """Return the block in which torch has the threads to measure with."""
        runner, workers = self.runner, worker_input_of(self._config).workers_on_host
        from pytest_autoquant.scoring.machine.threads import measuring_threads

        return measuring_threads(runner.multiplied, workers=workers)

    def check(self, item: pytest.Item, combination: Combination | str) -> StructureCheck:
        """Check a combination and attach its status to the test."""
        with as_failure():
            if isinstance(combination, str):
                combination = self.plan.combination_named(combination)
            check = self.runner.check(combination)
        _add(item, Checked(check=check))
        return check

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Attach the outcomes as a JSON string: it survives the way to an xdist controller.

        A skip in the setup is shown at the test, not at the line here that raised it.
        """
        report = yield
        outcomes = item.stash.get(_OUTCOMES, None)
        if is_end_of_test(report) and outcomes:
            if report.when == "setup" and isinstance(report.longrepr, tuple):
                path, line = item.reportinfo()[:2]
                report.longrepr = (str(path), (line or 0) + 1, report.longrepr[2])
            marker = item.get_closest_marker("aq_tolerance")
            is_there = is_worker(self._config)
            report.autoquant = dump_report(
                WorkerReport(
                    outcomes=tuple(outcomes),
                    tolerances=None if marker is None else dict(marker.kwargs),
                    process=self._config.workerinput["workerid"] if is_there else None,  # type: ignore[attr-defined]
                    timing=self._clock.seconds() if is_there else {},
                )
            )
            report.autoquant_state = item.stash.get(_STATE, None)
        return report


def _skipped(case: Case | SchemeCase, support: Support, bits: float | None) -> SkippedCase:
    return SkippedCase(
        case_id=case.case_id,
        status=support.status.value,
        reason=support.reason,
        effective_bits=bits,
    )


def _add(item: pytest.Item, outcome: Outcome) -> None:
    item.stash.setdefault(_OUTCOMES, []).append(outcome)


@contextmanager
def _attached(item: pytest.Item, case: Case | SchemeCase) -> Iterator[None]:
    """Attach what a case raised; an error of ours fails it with the message alone."""
    try:
        yield
    except AnotherModelError as error:
        _add(item, Refused(problem=str(error)))
        raise failure(error) from None
    except AutoquantError as error:
        _add(item, Failed(case=FailedCase(case_id=case.case_id, problem=str(error))))
        if isinstance(error, MeasurementError) and error.trace:
            item.add_report_section("call", "traceback in the library", error.trace)
        raise failure(error) from None
    except Exception as error:
        _add(item, Failed(case=FailedCase(case_id=case.case_id, problem=in_words(error))))
        raise


def _warn(message: str) -> None:
    warnings.warn(AutoquantWarning(message), stacklevel=2)
