"""Effective configs of a run and their status on the CPU, without a model."""

import pytest
import torch
from builders import run_plan
from pytest_autoquant.errors import UsageError
from pytest_autoquant.manifests.records.outcomes import StructureCheck
from pytest_autoquant.modelopt_support.status import Status
from pytest_autoquant.scoring.configurations import Configurations

PLAN = run_plan()


@pytest.fixture(scope="module")
def configurations():
    return Configurations("cpu", "auto", lambda *_: None)


def combination(name):
    return PLAN.case_named(f"{name}-small").combination


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [("cpu", "auto", torch.float32), ("cpu", "bf16", torch.bfloat16)],
)
def test_device_and_dtype_are_those_of_the_options(device, dtype, expected):
    configurations = Configurations(device, dtype, lambda *_: None)
    assert (configurations.device, configurations.dtype) == (torch.device("cpu"), expected)


def test_unknown_device_is_refused():
    with pytest.raises(UsageError, match="'gpu'"):
        _ = Configurations("gpu", "auto", lambda *_: None).device


def test_config_is_resolved_once(configurations):
    config = configurations.config(combination("wint4_aint8-default"))
    assert configurations.config(combination("wint4_aint8-default")) is config
    assert config.effective_bits == 4.125


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("wint4_aint8-w_group64", Status.SUPPORTED),
        ("wint8_afp16-a_per_token_dynamic", Status.NO_EFFECT),
    ],
)
def test_structure_check_is_the_support_of_its_config(configurations, name, status):
    asked = combination(name)
    config, support = configurations.config(asked), configurations.support(asked)
    assert support.status is status
    assert configurations.check(asked) == StructureCheck(
        pair=asked.pair.name,
        granularity=asked.granularity.name,
        status=status.value,
        reason=support.reason,
        format_name=asked.pair.format_name,
        effective_bits=config.effective_bits,
        digest=config.digest,
    )
