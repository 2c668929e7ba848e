"""Fixtures: measure a case, derive a scheme, check a combination. Cheap until one is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_autoquant.grid.case import Case, Combination, SchemeCase
    from pytest_autoquant.manifests.records.outcomes import StructureCheck
    from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest
    from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
    from pytest_autoquant.scoring.runner import MeasurementRunner


@pytest.fixture
def aq_measure(request: pytest.FixtureRequest) -> Callable[[Case | str], Manifest]:
    """Measure a case and return its manifest; the model is loaded once per worker.

    A case is the value of ``aq_case``, or its name: ``aq_measure("wint4_afp16-default-small")``. A
    named case that cannot run on the device skips the test with the reason.
    """
    from pytest_autoquant.plugin.worker.hooks import worker_of

    worker = worker_of(request.config)
    return lambda case: worker.measure(request.node, case)


@pytest.fixture
def aq_derive(
    request: pytest.FixtureRequest,
) -> Callable[[SchemeCase | str], SchemeManifest]:
    """Derive a scheme and return its manifest; its checkpoint is written with ``--aq-export``."""
    from pytest_autoquant.plugin.worker.hooks import worker_of

    worker = worker_of(request.config)
    return lambda case: worker.derive(request.node, case)


@pytest.fixture(scope="session")
def aq_runner(request: pytest.FixtureRequest) -> MeasurementRunner:
    """Return what measures in this process: the model, the configs, the captions' batches.

    For tests and benchmarks that look below a case; ``aq_measure`` writes manifests, this does not.
    """
    from pytest_autoquant.plugin.worker.hooks import worker_of

    return worker_of(request.config).runner


@pytest.fixture
def aq_check(request: pytest.FixtureRequest) -> Callable[[Combination | str], StructureCheck]:
    """Resolve a combination, have ModelOpt validate it, and return its status.

    A combination is the value of ``aq_combination``, or its name: ``wint4_afp16-w_group64``.
    """
    from pytest_autoquant.plugin.worker.hooks import worker_of

    worker = worker_of(request.config)
    return lambda combination: worker.check(request.node, combination)
