"""What this plugin needs of pytest-xdist beyond its public hooks. Checked on pytest-xdist 3.8.

Private or undocumented names, each with a test in ``tests/unit/plugin/test_xdist_adapter.py``:

- ``LoadScopeScheduling.assigned_work``, ``.workqueue``, ``.collection``, ``._reschedule``,
  ``._split_scope`` and ``.remove_node``, to deal whole parts and never to run again a test that
  killed its worker;
- ``LoadScheduling.collection``, ``.node2collection`` and ``.numnodes``, to choose the scheduling
  once every worker has collected;
- a worker's ``pytest_warning_recorded`` reaches the controller, in order, before the worker's
  ``pytest_xdist_node_collection_finished``: the only public hook that carries data of a worker
  there before tests run. Node ids alone do not tell whose a test is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xdist.scheduler import LoadScheduling, LoadScopeScheduling

from pytest_autoquant.plugin.messages.collected import CollectedCases

if TYPE_CHECKING:
    import pytest

Parts = Callable[[Sequence[str], int], "dict[str, int]"]
"""From all node ids and the number of workers: the part of every node id that is a case."""


class CollectedAnnouncement(UserWarning):
    """Carries ``CollectedCases`` from a worker to the controller; nobody sees it as a warning."""


def announce(collected: CollectedCases, config: pytest.Config) -> None:
    """Send from a worker to the controller which of its tests are cases."""
    message = CollectedAnnouncement(collected.dump())
    recorded = warnings.WarningMessage(message, CollectedAnnouncement, __file__, 0)
    config.hook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": recorded, "when": "collect", "nodeid": "", "location": None}
    )


def announced(recorded: warnings.WarningMessage, config: pytest.Config) -> CollectedCases | None:
    """Return what a worker announced, None for a warning of anyone else.

    The announcement is taken out of the terminal's list of warnings.
    """
    if not isinstance(recorded.message, CollectedAnnouncement):
        return None
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        shown = reporter.stats.get("warnings", [])
        text = str(recorded.message)
        shown[:] = [warning for warning in shown if text not in str(warning.message)]
        if not shown:
            reporter.stats.pop("warnings", None)
    return CollectedCases.load(str(recorded.message))


class Scheduling:
    """xdist's own load scheduling, until the collected tests turn out to hold cases."""

    def __init__(self, config: pytest.Config, log: Any, parts: Parts) -> None:
        self._arguments = config, log
        self._parts_of = parts
        self._chosen: Any = LoadScheduling(config, log)

    def schedule(self) -> None:
        """Choose, the first time, and send tests out."""
        if isinstance(self._chosen, LoadScheduling) and self._chosen.collection is None:
            self._choose()
        self._chosen.schedule()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chosen, name)

    def _choose(self) -> None:
        collections = dict(self._chosen.node2collection)
        parts = self._parts_of(next(iter(collections.values())), self._chosen.numnodes)
        if not parts:
            return
        nodes, self._chosen = self._chosen.nodes, CaseScheduling(*self._arguments, parts)
        for node in nodes:
            self._chosen.add_node(node)
        for node, collected in collections.items():
            self._chosen.add_node_collection(node, collected)


class CaseScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Load scheduling in which the cases of one part make one unit; other tests go one by one."""

    def __init__(self, config: pytest.Config, log: Any, parts: Mapping[str, int]) -> None:
        super().__init__(config, log)
        self._parts = parts

    def schedule(self) -> None:
        """Send tests out; to the replacement of a dead worker, two units.

        A worker runs a test only once it knows the next one, or that there is none.
        """
        is_first = self.collection is None
        super().schedule()
        if not is_first:
            super().schedule()

    def remove_node(self, node: Any) -> str | None:
        """Hand on what a dead worker left, but never the test that was running when it died."""
        workload = self.assigned_work.pop(node)
        pending = [i for unit in workload.values() for i, is_done in unit.items() if not is_done]
        if not pending:
            return None
        crashed: str = pending[0]
        for scope, unit in workload.items():
            left = {nodeid: is_done for nodeid, is_done in unit.items() if nodeid != crashed}
            if not all(left.values()):
                self.workqueue[scope] = left
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _split_scope(self, nodeid: str) -> str:
        part = self._parts.get(nodeid)
        return nodeid if part is None else f"part {part}"
