"""The pytest plugin: options, markers, the grid's parameters, and who does what.

Hooks are short and hand over to the session. Nothing here imports torch, transformers or modelopt,
so an unrelated pytest run pays nothing for the plugin being installed. ``worker`` measures,
``controller`` writes; without xdist one process is both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_autoquant.options.settings import OPTIONS
from pytest_autoquant.plugin.pytest_config import (
    CASE_FIXTURE,
    COMBINATION_FIXTURE,
    SCHEME_FIXTURE,
    check_early,
    is_asked_for,
    is_configured,
    is_flag_set,
    is_worker,
    session_of,
)

if TYPE_CHECKING:
    from pytest_autoquant.grid.case import CaseParameter
    from pytest_autoquant.plugin.session import AutoquantSession

pytest_plugins = ("pytest_autoquant.plugin.worker",)

MARKERS = (
    "gpu: runs AutoQuant, on whatever device is asked for; meant for GPU runners in CI",
    "structure: needs no model",
    "scheme: derives a mixed-precision scheme; runs only with --aq-schemes",
    "experimental: the pair is a hybrid that no ModelOpt preset names",
    "aq_tolerance(spearman, top_ten, total, group, selected): this case's own tolerances of the "
    "regression gate",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("autoquant", "quantization sensitivity with ModelOpt AutoQuant")
    for option in OPTIONS:
        action = "store_true" if option.kind == "flag" else "store"
        shown = "" if option.default in (None, ()) else f" (default: {option.default})"
        group.addoption(
            option.flag, dest=option.ini, action=action, default=None, help=option.help + shown
        )
        parser.addini(option.ini, help=option.help + shown, default=None)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if is_worker(config):
        return
    if is_asked_for(config):
        check_early(config)
    from pytest_autoquant.plugin.controller import Controller

    config.pluginmanager.register(Controller(config), "autoquant-controller")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    from pytest_autoquant.plugin import commands

    if is_flag_set(config, "list"):
        return commands.list_matrix(config)
    if is_flag_set(config, "report_only"):
        return commands.report_only(config)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in (CASE_FIXTURE, COMBINATION_FIXTURE, SCHEME_FIXTURE):
        if name in metafunc.fixturenames:
            try:
                session = session_of(metafunc.config)
            except pytest.UsageError as error:
                raise pytest.Collector.CollectError(str(error)) from None
            metafunc.parametrize(name, [_param(item) for item in _grid(session, name)])


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One worker per GPU; without a GPU, or in a run that is not ours, xdist's own number."""
    if not (is_asked_for(config) or is_configured(config)):
        return None
    from pytest_autoquant.plugin.gpus import visible_gpus

    device = session_of(config).settings.device
    if device == "cpu" or not visible_gpus():
        return None
    return len(visible_gpus()) if device in ("auto", "cuda") else 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for flag, marker in (("structure_only", "structure"), ("gpu_only", "gpu")):
        if is_flag_set(config, flag):
            config.hook.pytest_deselected(
                items=[item for item in items if not item.get_closest_marker(marker)]
            )
            items[:] = [item for item in items if item.get_closest_marker(marker)]


def _grid(session: AutoquantSession, name: str) -> tuple[CaseParameter, ...]:
    if name == SCHEME_FIXTURE:
        return session.schemes
    return session.cases if name == CASE_FIXTURE else session.combinations


def _param(item: CaseParameter) -> Any:
    is_experimental = any(combination.pair.experimental for combination in item.combinations)
    marks = [pytest.mark.experimental] if is_experimental else []
    return pytest.param(item, id=item.test_id, marks=marks)
