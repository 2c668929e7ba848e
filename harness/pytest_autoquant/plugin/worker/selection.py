"""Which collected tests are ours, and which of them this process runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_autoquant.errors import UsageError
from pytest_autoquant.plugin.messages.collected import CollectedCases
from pytest_autoquant.plugin.messages.worker_input import worker_input_of
from pytest_autoquant.plugin.pytest_config import (
    CASE,
    PARAMETERS,
    SCHEME,
    is_worker,
    only_looks,
    parameter,
    plan_of,
)

if TYPE_CHECKING:
    from pytest_autoquant.grid.assignment import Assignment
    from pytest_autoquant.options.run_plan import RunPlan

_USES_US = frozenset(("aq_measure", "aq_check", "aq_derive", "aq_runner"))


class Selection:
    """Deselects what the options leave out, and announces the rest to the controller.

    Attributes:
        assignment: the selected cases, and which of them are measured together; None until tests
            of ours are collected.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._collected = CollectedCases()
        self.assignment: Assignment | None = None

    @property
    def _plan(self) -> RunPlan:
        return plan_of(self._config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Deselect what ``--aq-structure-only`` and ``--aq-gpu-only`` leave out."""
        settings = self._plan.settings
        if settings.structure_only:
            self._keep(items, [item for item in items if item.get_closest_marker("aq_structure")])
        if settings.gpu_only:
            self._keep(items, [item for item in items if item.get_closest_marker("aq_gpu")])

    @pytest.hookimpl(specname="pytest_collection_modifyitems", trylast=True)
    def pytest_select_shard(self, items: list[pytest.Item]) -> None:
        """Keep this shard's cases, and remember which of them are measured together."""
        ours = [item for item in items if _is_ours(item)]
        if not ours:
            return
        cases = [case for item in items if (case := parameter(item, CASE)) is not None]
        dealt = worker_input_of(self._config)
        workers = self._config.workerinput["workercount"] if dealt.is_dealt_by_part else 1  # type: ignore[attr-defined]
        self.assignment = self._plan.assign(cases, workers=workers)
        self._refuse_schemes_without_names(items)
        self._keep(items, [item for item in items if self._is_in_shard(item)])
        self._collected = CollectedCases(num_selected=len(ours))

    def _refuse_schemes_without_names(self, items: list[pytest.Item]) -> None:
        is_all = all(parameter(item, SCHEME) is not None for item in items)
        if is_all and not self._plan.settings.schemes and not is_worker(self._config):
            raise pytest.UsageError(
                "only scheme cases are selected and none is named; give --aq-schemes=NAME,... or "
                "--aq-schemes=all"
            )

    def _keep(self, items: list[pytest.Item], kept: list[pytest.Item]) -> None:
        if len(kept) < len(items):
            gone = set(items) - set(kept)
            self._config.hook.pytest_deselected(items=[item for item in items if item in gone])
            items[:] = kept

    def _is_in_shard(self, item: pytest.Item) -> bool:
        case, combination, scheme = (parameter(item, name) for name in PARAMETERS)
        if scheme is not None:
            return self._plan.takes_scheme(scheme)
        if case is not None:
            assert self.assignment is not None
            return self.assignment.holds(case)
        return combination is None or self._plan.takes_combination(combination)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Announce which tests are cases, before the controller learns their names."""
        items = [item for item in session.items if _is_ours(item)]
        cases, schemes = _ids(items, CASE), _ids(items, SCHEME)
        collected = CollectedCases(
            cases=cases,
            schemes=schemes,
            others=tuple(
                i.nodeid for i in items if i.nodeid not in cases and i.nodeid not in schemes
            ),
            num_selected=self._collected.num_selected,
            problem=self._preset_problem(items),
        )
        if not collected.num_selected:
            return
        if is_worker(self._config):
            from pytest_autoquant.plugin.xdist_adapter import announce

            announce(collected, self._config)
        else:
            from pytest_autoquant.plugin import controller_of

            controller_of(self._config).collect(collected)

    def _preset_problem(self, items: list[pytest.Item]) -> str:
        """Return why presets that pairs of one's own name cannot be used; empty if they can."""
        from pytest_autoquant.plugin.worker.hooks import worker_of

        values = (parameter(item, name) for item in items for name in PARAMETERS)
        combinations = [each for value in values if value for each in value.combinations]
        if only_looks(self._config) or not any(each.pair.from_preset for each in combinations):
            return ""
        try:
            worker_of(self._config).runner.configurations.check_presets(combinations)
        except UsageError as error:
            return str(error)
        return ""


def _is_ours(item: pytest.Item) -> bool:
    if any(parameter(item, name) is not None for name in PARAMETERS):
        return True
    return not _USES_US.isdisjoint(getattr(item, "fixturenames", ()))


def _ids(items: list[pytest.Item], name: str) -> dict[str, str]:
    values = ((item.nodeid, parameter(item, name)) for item in items)
    return {nodeid: value.case_id for nodeid, value in values if value is not None}
