"""What every engine takes and returns."""

import pytest
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.scoring.engine import Failure, GroupScore


def test_group_has_modelopts_name():
    group = GroupScore(modules=("a.q_proj", "a.k_proj"), score=1.0, quantized=True)
    assert group.name == "a.q_proj.quant_recipe"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MeasurementError("out of memory"), "out of memory"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (ValueError(), "ValueError: no message"),
        (MeasurementError("x" * 999), f"{'x' * 300}..."),
    ],
)
def test_failure_names_a_librarys_error_with_its_type(error, reason):
    try:
        raise error
    except Exception as caught:
        failure = Failure.of(caught)
    assert failure.reason == reason
    assert failure.trace.startswith("Traceback (most recent call last):")
    assert "test_failure_names" in failure.trace
