"""The controller's part: take results in as they arrive, write every file, sum up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.plugin.access import (
    CASE_FIXTURE,
    COMBINATION_FIXTURE,
    as_usage_error,
    check_early,
    has_session,
    param,
    session_of,
)


class Controller:
    """Registered in every process but xdist workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._summary: tuple[Path, ...] = ()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Find an unwritable report folder before the first case, not after the last."""
        ours = (CASE_FIXTURE, COMBINATION_FIXTURE)
        if session.config.option.collectonly:
            return
        if any(param(item, name) is not None for item in session.items for name in ours):
            check_early(self._config)
            with as_usage_error():
                session_of(self._config).check_report_folder()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """The same under xdist, where the controller collects nothing itself."""
        if self._config.option.collectonly or not self._is_ours(ids):
            return
        try:
            session_of(self._config).check_report_folder()
        except HarnessError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write what the worker attached; it is on disk when this returns."""
        message = getattr(report, "autoquant", None)
        if message is not None:
            session_of(self._config).receive(message, getattr(report, "autoquant_state", None))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the summary; a report that could not be written fails the run."""
        if not has_session(self._config):
            return
        autoquant = session_of(self._config)
        self._summary = autoquant.finish()
        if autoquant.results.write_errors and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """End with the counts, the most sensitive groups and the files written."""
        if not has_session(self._config):
            return
        session = session_of(self._config)
        if session.results.is_empty:
            return
        from harness.report.overview import terminal_lines

        terminalreporter.section("autoquant")
        for line in terminal_lines(session.results):
            terminalreporter.line(line)
        for path in self._summary:
            terminalreporter.line(f"wrote {_short(path, self._config)}")
        if session.results.cases:
            count = len(session.results.cases)
            terminalreporter.line(
                f"wrote {count} manifests and layer reports under "
                f"{_short(session.root, self._config)}"
            )

    def _is_ours(self, ids: list[str]) -> bool:
        session = session_of(self._config)
        grid = [case.id for case in session.cases] + [c.id for c in session.combinations]
        known = {f"[{name}]" for name in grid}
        return any(node_id[node_id.rfind("[") :].split("@")[0] in known for node_id in ids)


def _short(path: Path, config: pytest.Config) -> str:
    here = config.invocation_params.dir
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
