"""Parametrizes tests over the cases, combinations and schemes that they ask for."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_autoquant.grid.case import CaseParameter
from pytest_autoquant.plugin.pytest_config import CASE, COMBINATION, PARAMETERS, SCHEME, plan_of


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test over the cases, combinations or schemes that it asks for."""
    names = [name for name in PARAMETERS if name in metafunc.fixturenames]
    if not names:
        return
    try:
        plan = plan_of(metafunc.config)
    except pytest.UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    grids: dict[str, tuple[CaseParameter, ...]] = {
        CASE: plan.cases,
        COMBINATION: plan.combinations,
        SCHEME: plan.schemes,
    }
    for name in names:
        _refuse_own_values(metafunc, name)
        metafunc.parametrize(name, [_param(value) for value in grids[name]])


def _refuse_own_values(metafunc: pytest.Metafunc, name: str) -> None:
    for marker in metafunc.definition.iter_markers("parametrize"):
        names = marker.args[0] if marker.args else marker.kwargs.get("argnames", "")
        if name in (names.replace(" ", "").split(",") if isinstance(names, str) else names):
            raise pytest.Collector.CollectError(
                f"{name} has the selected values as its parameters; for some of them select with "
                '--aq-pairs and the like, or ask by name: aq_measure("wint4_afp16-default-small")'
            )


def _param(value: CaseParameter) -> Any:
    is_experimental = any(c.pair.experimental for c in value.combinations)
    marks = [pytest.mark.aq_experimental] if is_experimental else []
    return pytest.param(value, id=value.test_id, marks=marks)
