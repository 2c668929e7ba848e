"""The controller's pytest hooks: what the run is, who measures what, and how it ends."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autoquant.plugin.messages.collected import CollectedCases
from pytest_autoquant.plugin.messages.worker_input import WORKER_INPUT, WorkerInput
from pytest_autoquant.plugin.pytest_config import (
    as_usage_error,
    clock_of,
    is_asked_for,
    is_configured,
    is_end_of_test,
    only_looks,
    plan_of,
    typed_options,
)
from pytest_autoquant.text import counted

if TYPE_CHECKING:
    from pytest_autoquant.options.run_plan import RunPlan
    from pytest_autoquant.plugin.controller.collector import Collector
    from pytest_autoquant.regression.recorded_model import RecordedModel
    from pytest_autoquant.regression.resume import Earlier


class Controller:
    """Registered in every process but xdist workers, in runs that may be ours."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._summary: tuple[Path, ...] = ()
        self._gpus: dict[str, list[str]] = {}
        self._collected: CollectedCases | None = None

    @cached_property
    def collector(self) -> Collector:
        """What takes in results, built on first use.

        Raises:
            pytest.UsageError: options or baselines cannot be used.
        """
        clock = clock_of(self._config)
        with clock.importing():
            from pytest_autoquant.plugin.controller.collector import Collector

        plan = plan_of(self._config)
        with as_usage_error():
            return Collector(plan, clock)

    @cached_property
    def earlier(self) -> Earlier:
        """Fingerprints of what an earlier run measured, on ``--aq-resume``."""
        from pytest_autoquant.regression.resume import read_earlier

        try:
            plan = plan_of(self._config)
        except pytest.UsageError:
            return {}  # a worker that collects cases says so
        if not plan.settings.resume:
            return {}
        with as_usage_error():
            found = read_earlier(
                plan.root,
                plan.cases,
                checked=bool(plan.settings.check_scores),
                whole=bool(plan.settings.whole_model_kl),
            )
        self.collector.results.left_out += found.unreadable
        return found.fingerprints

    @cached_property
    def recorded(self) -> RecordedModel | None:
        """Whose results the report folder has under the model's name."""
        from pytest_autoquant.regression.recorded_model import recorded_model

        try:
            plan = plan_of(self._config)
        except pytest.UsageError:
            return None  # a worker that collects cases says so
        return recorded_model(plan.root, plan.source.name)

    def pytest_configure(self, config: pytest.Config) -> None:
        """Refuse bad input before anything is collected; ask torch only where devices matter."""
        if not is_asked_for(config):
            return
        _ = self.collector
        self._check_device()

    def _check_device(self) -> None:
        settings = plan_of(self._config).settings
        if not settings.gpu_only and settings.device in ("auto", "cpu"):
            return
        with clock_of(self._config).importing():
            from pytest_autoquant.models.device import resolve_device

        with as_usage_error():
            device = resolve_device(settings.device)
            if settings.gpu_only and settings.device == "auto" and device.type == "cpu":
                raise pytest.UsageError(
                    "--gpu-only (--aq-gpu-only): torch sees no CUDA device; use a GPU runner, or "
                    "give --aq-device cpu to run AutoQuant on the CPU"
                )

    def pytest_report_header(self) -> list[str]:
        """Show what is measured, on what and into which folder."""
        return self._header() if is_asked_for(self._config) else []

    def pytest_report_collectionfinish(self) -> list[str]:
        """Show the same where only the collected tests tell that the run is ours."""
        if self._collected is None or is_asked_for(self._config):
            return []
        return self._header()

    def _header(self) -> list[str]:
        plan = plan_of(self._config)
        settings = plan.settings
        captions = settings.captions.name if settings.captions is not None else "built-in"
        return [
            f"autoquant: model {plan.source.name}, device {settings.device}, "
            f"dtype {settings.dtype}, engine {settings.engine}, captions {captions}",
            f"autoquant: reports in {_short(plan.root, self._config)}",
            *(f"autoquant: {note}" for note in plan.known.notes),
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Refuse a run in which no case was selected although an option asks for one."""
        if hasattr(self._config.option, "tx") and self._config.option.tx:
            return  # the workers collect
        self._check_selection(len(session.items))

    def collect(self, collected: CollectedCases) -> None:
        """Take in which tests are cases; find an unwritable folder before the first of them."""
        if only_looks(self._config):
            return
        if collected.problem:
            raise pytest.UsageError(collected.problem)
        with as_usage_error():
            plan = plan_of(self._config)
            by_id = plan.cases_by_id
            plan.check_budget([by_id[i] for i in collected.cases.values() if i in by_id])
            self._check_device()
            self.collector.check_folders()
            if self._collected is None and (collected.cases or collected.schemes):
                self._refuse_another_model(plan)
                self._check_places(plan)
            self.collector.expect(collected)
        self._collected = collected

    def _check_places(self, plan: RunPlan) -> None:
        """Find before the first case what cannot hold a model that is spread over devices."""
        if plan.settings.device_map == "single":
            return
        from pytest_autoquant.extras import require_measure

        require_measure("--aq-device-map auto")
        from pytest_autoquant.scoring.machine.model_places import check_places

        check_places(plan.settings, plan.source)

    def _refuse_another_model(self, plan: RunPlan) -> None:
        """Refuse a local checkpoint whose name is another's; other models are known once loaded."""
        folder = Path(plan.source.location)
        is_local = plan.settings.random_seed is None and folder.is_dir()
        if is_local and self.recorded is not None:
            from pytest_autoquant.models.checkpoint_digest import files_digest

            with suppress(OSError):  # loading says what cannot be read
                self.recorded.refuse_another_checkpoint(plan.source.name, files_digest(folder))

    @pytest.hookimpl(optionalhook=True)
    def pytest_warning_recorded(self, warning_message: Any) -> None:
        """Take in what an xdist worker announces: it comes as a warning, before its collection."""
        from pytest_autoquant.plugin.xdist_adapter import announced

        collected = announced(warning_message, self._config)
        if collected is None:
            return
        try:
            self.collect(collected)
        except pytest.UsageError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Refuse a run in which no case was selected although an option asks for one."""
        try:
            self._check_selection(len(ids))
        except pytest.UsageError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

    def _check_selection(self, num_items: int) -> None:
        if only_looks(self._config) or num_items == 0:
            return  # pytest itself says that no test ran
        if not is_asked_for(self._config):
            return
        settings = plan_of(self._config).settings
        collected = self._collected or CollectedCases()
        if collected.num_selected == 0:
            asking = [option.flag for option in typed_options(self._config)]
            if asking:
                raise pytest.UsageError(
                    f"{asking[0]}: no case was selected, so nothing is measured; select cases, "
                    "such as with pytest --pyargs pytest_autoquant.cases, or drop the option"
                )
        elif settings.baseline is not None and not (collected.cases or collected.others):
            raise pytest.UsageError(
                "--aq-baseline: no sensitivity case was selected, so nothing is compared"
            )
        elif settings.schemes and settings.shard is None and not collected.schemes:
            raise pytest.UsageError(
                "--aq-schemes: no scheme case was selected; select test_scheme, or drop the option"
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        """Write what the worker attached, on disk before anyone reads the report.

        The gate's verdict becomes the report's outcome before pytest counts it.
        """
        if is_end_of_test(report) and self._is_ours(report):
            from pytest_autoquant.plugin.controller.reporting import apply_verdict, end_of

            apply_verdict(self.collector.take(end_of(report)), report)
        return (yield)

    def _is_ours(self, report: pytest.TestReport) -> bool:
        is_case = self._collected is not None and report.nodeid in self._collected.case_ids
        return is_case or hasattr(report, "autoquant")

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Say what the workers are about to wait for on a machine with GPUs."""
        config = self._config
        is_idle = not getattr(config.option, "tx", None) or only_looks(config)
        if is_idle or not is_asked_for(config):
            return
        settings = plan_of(config).settings
        from pytest_autoquant.plugin.gpus import visible_gpus

        if settings.device == "cpu" or settings.structure_only or not visible_gpus():
            return
        from pytest_autoquant.modelopt_support.cuda_extensions import ANNOUNCEMENT

        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(ANNOUNCEMENT)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which GPU of its host is its own and what was measured before."""
        host = _host(node.gateway.spec)
        workers_on_host = sum(_host(spec) == host for spec in node.nodemanager.specs)
        self._refuse_too_many_workers(host, workers_on_host)
        held = self._gpus.setdefault(host, [])
        index = held.index("") if "" in held else len(held)
        held[index : index + 1] = [node.gateway.id]
        node.workerinput[WORKER_INPUT] = WorkerInput(
            is_dealt_by_part=self._config.option.dist == "load",
            gpu=index,
            workers_on_host=workers_on_host,
            earlier=self.earlier if is_configured(self._config) else {},
            recorded=self.recorded if is_configured(self._config) else None,
        ).dump()

    def _refuse_too_many_workers(self, host: str, workers: int) -> None:
        """Refuse more workers than this host has GPUs for; another host's worker does so itself."""
        if host or not is_asked_for(self._config):
            return
        settings = plan_of(self._config).settings
        if settings.device_map == "auto":
            from pytest_autoquant.plugin.gpus import refuse_too_many

            with as_usage_error():
                refuse_too_many(workers, settings.device)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Free the GPU of a worker that ended, for the one that takes its place."""
        for held in self._gpus.values():
            held[:] = ["" if name == node.gateway.id else name for name in held]

    @pytest.hookimpl(optionalhook=True, trylast=True)  # a project's own scheduler goes first
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Deal the cases by part, unless the user asked for another distribution."""
        if config.option.dist != "load":
            return None
        from pytest_autoquant.plugin.xdist_adapter import Scheduling

        return Scheduling(config, log, self._parts)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the summary; a report that could not be written fails the run."""
        if "collector" not in vars(self):
            return
        collector = self.collector
        self._summary = collector.finish(self._config.invocation_params.args)
        is_empty = session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        if is_empty and collector.has_cases and plan_of(self._config).settings.shard is not None:
            session.exitstatus = pytest.ExitCode.OK  # other shards have the selected cases
        is_broken = collector.results.write_errors or collector.results.lost
        if session.exitstatus == pytest.ExitCode.OK and (is_broken or collector.compared_nothing):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """End with the counts, the most sensitive groups and the files written."""
        if "collector" not in vars(self) or self.collector.results.is_empty:
            return
        from pytest_autoquant.plugin.controller.reporting import closing_lines

        terminalreporter.section("autoquant")
        for line in closing_lines(self.collector):
            terminalreporter.line(line)
        for path in self._summary:
            terminalreporter.line(f"wrote {_short(path, self._config)}")
        if self.collector.results.written:
            manifests = counted(len(self.collector.results.written), "manifest")
            terminalreporter.line(
                f"wrote {manifests} and layer reports under "
                f"{_short(plan_of(self._config).root, self._config)}"
            )

    def _parts(self, ids: Sequence[str], workers: int) -> dict[str, int]:
        """Return the part of every node id that is a case; schemes all go to one worker."""
        if self._collected is None:
            return {}
        plan, cases = plan_of(self._config), self._collected.cases
        by_id = plan.cases_by_id
        collected = dict.fromkeys(cases[nodeid] for nodeid in ids if nodeid in cases)
        parts = plan.parts([by_id[i] for i in collected if i in by_id], workers)
        dealt = {nodeid: parts[case_id] for nodeid, case_id in cases.items() if case_id in parts}
        return dealt | dict.fromkeys(self._collected.schemes, workers)


def num_workers(config: pytest.Config) -> int | None:
    """Return the number of workers of ``-n auto``, one per GPU; None for xdist's own number."""
    from pytest_autoquant.plugin.gpus import visible_gpus

    device = plan_of(config).settings.device
    if device == "cpu" or not visible_gpus():
        return None
    return len(visible_gpus()) if device in ("auto", "cuda") else 1


def _host(spec: Any) -> str:
    """Return the host name of an xdist worker; empty for this host."""
    target = str(spec.ssh or spec.socket or spec.via or "").partition(" ")[0]
    return target.rpartition("@")[2]


def _short(path: Path, config: pytest.Config) -> str:
    here = config.invocation_params.dir
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
