"""The controller's part: deal the cases, take results in as they arrive, write every file, sum up.

The regression gate speaks here too: workers need not see the baselines.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.plugin.pytest_config import (
    CASE_FIXTURE,
    COMBINATION_FIXTURE,
    DEALT_INPUT,
    EARLIER_INPUT,
    GPU_INPUT,
    NEIGHBOURS_INPUT,
    SCHEME_FIXTURE,
    as_usage_error,
    check_early,
    has_session,
    is_asked_for,
    is_configured,
    is_flag_set,
    param,
    session_of,
)

if TYPE_CHECKING:
    from pytest_autoquant.grid.case import Case, SchemeCase
    from pytest_autoquant.regression.baselines import Verdict


class Controller:
    """Registered in every process but xdist workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._summary: tuple[Path, ...] = ()
        self._gpus: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Find an unwritable report folder before the first case, not after the last."""
        ours = (CASE_FIXTURE, COMBINATION_FIXTURE, SCHEME_FIXTURE)
        if _only_looks(self._config):
            return
        if any(param(item, name) is not None for item in session.items for name in ours):
            check_early(self._config)
            with as_usage_error():
                session_of(self._config).check_folders()
            names = (CASE_FIXTURE, SCHEME_FIXTURE)
            cases = (param(item, name) for item in session.items for name in names)
            session_of(self._config).expect(case for case in cases if case is not None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """The same under xdist, where the controller collects nothing itself."""
        if _only_looks(self._config) or not self._is_ours(ids):
            return
        try:
            session_of(self._config).check_folders()
        except AutoquantError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        session_of(self._config).expect(self._cases(ids).values())
        session_of(self._config).expect(self._schemes(ids).values())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        """Write what the worker attached, on disk before anyone reads the report.

        The gate's verdict becomes the report's outcome: before pytest counts it.
        """
        message = getattr(report, "autoquant", None)
        if message is not None:
            state = getattr(report, "autoquant_state", None)
            session = session_of(self._config)
            _apply(session.receive(message, state, failed=report.failed), report)
        elif report.when in ("setup", "call") and (report.when == "call" or not report.passed):
            self._settle(report)
        return (yield)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Compile CUDA extensions once, before the workers start."""
        if not getattr(self._config.option, "tx", None) or _only_looks(self._config):
            return
        if not (is_asked_for(self._config) or is_configured(self._config)):
            return
        if is_flag_set(self._config, "structure_only"):
            return
        from pytest_autoquant.plugin.gpus import visible_gpus

        if session_of(self._config).settings.device != "cpu" and visible_gpus():
            from pytest_autoquant.modelopt_support.cuda_extensions import ANNOUNCEMENT

            reporter = self._config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.write_line(ANNOUNCEMENT)
            module = "pytest_autoquant.modelopt_support.cuda_extensions"
            subprocess.run([sys.executable, "-P", "-m", module], check=False)  # noqa: S603

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which GPU of its host is its own and what was measured before."""
        node.workerinput[DEALT_INPUT] = self._config.option.dist == "load"
        host = _host(node.gateway.spec)
        specs = node.nodemanager.specs
        node.workerinput[NEIGHBOURS_INPUT] = sum(_host(spec) == host for spec in specs)
        held = self._gpus.setdefault(host, [])
        index = held.index("") if "" in held else len(held)
        held[index : index + 1] = [node.gateway.id]
        node.workerinput[GPU_INPUT] = index
        if is_flag_set(self._config, "resume"):
            from pytest_autoquant.regression.resume import dump_earlier

            node.workerinput[EARLIER_INPUT] = dump_earlier(session_of(self._config).earlier)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        """Free the GPU of a worker that ended, for the one that takes its place."""
        for held in self._gpus.values():
            held[:] = ["" if name == node.gateway.id else name for name in held]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Deal the cases by part, unless the user asked for another distribution."""
        if config.option.dist != "load":
            return None
        from pytest_autoquant.plugin.xdist_scheduling import Scheduling

        return Scheduling(config, log, self._parts)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the summary; a report that could not be written fails the run."""
        if not has_session(self._config):
            return
        autoquant = session_of(self._config)
        self._summary = autoquant.finish(self._config.invocation_params.args)
        is_empty = session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        if is_empty and autoquant.settings.shard is not None:
            session.exitstatus = pytest.ExitCode.OK  # a shard may have nothing to do
        is_broken = autoquant.results.write_errors or autoquant.results.lost
        if is_broken and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """End with the counts, the most sensitive groups and the files written."""
        if not has_session(self._config):
            return
        session = session_of(self._config)
        if session.results.is_empty:
            return
        from pytest_autoquant.reports.session_report import terminal_lines

        terminalreporter.section("autoquant")
        for line in terminal_lines(session.results):
            terminalreporter.line(line)
        for path in self._summary:
            terminalreporter.line(f"wrote {_short(path, self._config)}")
        if session.results.written:
            count = len(session.results.written)
            terminalreporter.line(
                f"wrote {count} manifests and layer reports under "
                f"{_short(session.root, self._config)}"
            )

    def _is_ours(self, ids: Sequence[str]) -> bool:
        known = {combination.id for combination in session_of(self._config).combinations}
        is_checked = any(_parameters(i) in known for i in ids)
        return is_checked or bool(self._cases(ids)) or bool(self._schemes(ids))

    def _settle(self, report: pytest.TestReport) -> None:
        """A case that ended without measuring, skipped by the user or failed early, is not lost."""
        if has_session(self._config):
            session = session_of(self._config)
            named = _parameters(report.nodeid)
            case = session.cases_by_id.get(named) or session.schemes_by_id.get(named)
            if case is not None:
                _apply(session.settle(case, is_skipped=report.skipped), report)

    def _cases(self, ids: Sequence[str]) -> dict[str, Case]:
        """Return the cases among node ids; the controller of an xdist run collects none itself."""
        known = session_of(self._config).cases_by_id
        return {i: known[_parameters(i)] for i in ids if _parameters(i) in known}

    def _schemes(self, ids: Sequence[str]) -> dict[str, SchemeCase]:
        """Return the schemes among node ids."""
        known = session_of(self._config).schemes_by_id
        return {i: known[_parameters(i)] for i in ids if _parameters(i) in known}

    def _parts(self, ids: Sequence[str], workers: int) -> dict[str, int]:
        try:
            cases = self._cases(ids)
        except pytest.UsageError:
            return {}  # workers that collected cases have said so
        parts = session_of(self._config).parts(list(cases.values()), workers)
        dealt = {node_id: parts[case.case_id] for node_id, case in cases.items()}
        return dealt | dict.fromkeys(self._schemes(ids), workers)  # one worker takes them all


def _only_looks(config: pytest.Config) -> bool:
    """Whether pytest was asked to show what it would do instead of doing it."""
    option = config.option
    return bool(option.collectonly or option.setuponly or option.setupplan)


def _parameters(node_id: str) -> str:
    """Return what stands in the brackets of a node id; xdist may add ``@group`` after them."""
    return node_id[node_id.rfind("[") + 1 :].split("@")[0].removesuffix("]")


def _host(spec: Any) -> str:
    """Name the host of an xdist worker; the empty name is this one."""
    target = str(spec.ssh or spec.socket or spec.via or "").partition(" ")[0]
    return target.rpartition("@")[2]


def _apply(verdict: Verdict, report: pytest.TestReport) -> None:
    """Let a case fail, or skip its comparison, by the gate's verdict."""
    if verdict.outcome == "passed":
        return
    report.outcome = verdict.outcome.value
    report.when = "call"  # a skip arrives from the setup, where a failure would be an error
    if verdict.outcome == "failed":
        report.longrepr = verdict.text
    else:
        path, line, _ = report.location
        report.longrepr = (path, (line or 0) + 1, f"Skipped: {verdict.text}")


def _short(path: Path, config: pytest.Config) -> str:
    here = config.invocation_params.dir
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
