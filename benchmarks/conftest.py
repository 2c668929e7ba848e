"""What the benchmarks measure: the run that the plugin's options ask for."""

import pytest
from pytest_autoquant.plugin.pytest_config import plan_of


@pytest.fixture(scope="module")
def plan(pytestconfig):
    return plan_of(pytestconfig)


@pytest.fixture(scope="module")
def runner(aq_runner):
    return aq_runner


@pytest.fixture(scope="module")
def configs(plan, runner):
    """Name and config of each distinct config that runs here, by digest."""
    supported = [c for c in plan.combinations if runner.support(c).is_supported]
    return {runner.config(c).digest: (c.test_id, runner.config(c)) for c in reversed(supported)}
