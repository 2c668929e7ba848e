"""The pytest plugin's entry point. It costs a run that is not ours next to nothing.

Only pytest is imported here. Options are declared where one of them is used or help is asked for;
``Selection``, ``Worker`` and ``Controller`` are registered where a test uses our fixtures or an
option asks for them. Workers measure, the controller writes; without xdist one process is both.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_autoquant.plugin.controller.hooks import Controller

pytest_plugins = ("pytest_autoquant.plugin.worker.fixtures",)

MARKERS = (
    "aq_gpu: runs AutoQuant, on whatever device is asked for; meant for GPU runners in CI",
    "aq_structure: needs no model",
    "aq_scheme: derives a mixed-precision scheme; runs only with --aq-schemes",
    "aq_experimental: the pair is a hybrid that no ModelOpt preset names",
    "aq_tolerance(spearman, top_ten, total, group, selected): this case's own tolerances of the "
    "regression gate",
)
_FIXTURES = frozenset(
    ("aq_case", "aq_combination", "aq_scheme", "aq_measure", "aq_check", "aq_derive", "aq_runner")
)
_CASES = "pytest_autoquant.cases"
#: An option of ours, help for all options, or a file of further arguments.
_OURS = re.compile(r"(?<![A-Za-z0-9_-])(--aq-|aq_)|^(-h|--help|@.*)$")
_WORKER, _CONTROLLER = "autoquant-worker", "autoquant-controller"
_SELECTION = "autoquant-selection"


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    config: Any = pluginmanager.get_plugin("pytestconfig")
    if _mentions_us(config):
        from pytest_autoquant.plugin.pytest_config import add_options

        add_options(parser, config)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load the conftest of the installed cases early where one of its options is used.

    It declares ``--gpu-only`` and ``--structure-only``. pytest itself loads a conftest that early
    for paths, not for the package names of ``--pyargs``. Elsewhere a project's own options of
    these names stay free.
    """
    known = early_config.known_args_namespace
    paths = known.file_or_dir or early_config.getini("testpaths")
    names_cases = any(argument.startswith(_CASES) for argument in paths)
    is_used = not {"--gpu-only", "--structure-only"}.isdisjoint(args)
    if known.pyargs and names_cases and is_used and not known.noconftest:
        conftest = import_module(f"{_CASES}.conftest")
        # Under its path, pytest's own name for it: collection then finds it loaded.
        early_config.pluginmanager.register(conftest, conftest.__file__)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if any(name.startswith("aq_") for name in vars(config.option)):
        from pytest_autoquant.plugin.pytest_config import is_asked_for

        if is_asked_for(config):
            activate(config)
            return
    if getattr(config.option, "tx", None):
        controller_of(config)  # xdist asks it before it is known whose tests they are


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not _FIXTURES.isdisjoint(metafunc.fixturenames):
        try:
            activate(metafunc.config)
        except pytest.UsageError as error:
            raise pytest.Collector.CollectError(str(error)) from None
        from pytest_autoquant.plugin.worker.parametrize import parametrize

        parametrize(metafunc)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start one worker per GPU in a run of ours; what the user says to xdist goes first."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    from pytest_autoquant.plugin.pytest_config import is_configured

    if not is_configured(config):
        return None
    from pytest_autoquant.plugin.controller.hooks import num_workers

    return num_workers(config)


def activate(config: pytest.Config) -> None:
    """Register what this process does in a run of ours: measure, write, or both.

    Raises:
        pytest.UsageError: this system is not supported.
    """
    from pytest_autoquant.platforms import check_platform
    from pytest_autoquant.plugin.pytest_config import as_usage_error

    with as_usage_error():
        check_platform()
    is_worker = hasattr(config, "workerinput")
    if not is_worker:
        controller_of(config)
    if not config.pluginmanager.hasplugin(_WORKER):
        from pytest_autoquant.plugin.worker.hooks import Worker
        from pytest_autoquant.plugin.worker.selection import Selection

        selection = Selection(config)
        config.pluginmanager.register(selection, _SELECTION)
        config.pluginmanager.register(Worker(config, selection), _WORKER)


def controller_of(config: pytest.Config) -> Controller:
    """Return the run's controller, registered on first use."""
    found: Any = config.pluginmanager.get_plugin(_CONTROLLER)
    if found is None:
        from pytest_autoquant.plugin.controller.hooks import Controller

        found = Controller(config)
        config.pluginmanager.register(found, _CONTROLLER)
    controller: Controller = found
    return controller


def _mentions_us(config: pytest.Config) -> bool:
    """Whether a command line, environment or ini file may hold an option of ours, or asks for help.

    A worker of xdist gets the controller's parsed options instead of its command line.
    """
    words = [*config.invocation_params.args, os.environ.get("PYTEST_ADDOPTS", "")]
    words += [f"{name}_" for name in vars(config.option) if name.startswith("aq_")]
    words += getattr(config.option, "override_ini", None) or []
    if config.inipath is not None:
        words.append(config.inipath.read_text(encoding="utf-8", errors="replace"))
    return any(_OURS.search(word) for word in words)
