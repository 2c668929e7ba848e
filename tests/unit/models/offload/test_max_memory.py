"""Limits as they are written, in bytes."""

import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.options.kinds import MEMORY


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("4GiB", MaxMemory(each=4 << 30)),
        (" 1.5 gib ", MaxMemory(each=3 << 29)),
        ("60GB", MaxMemory(each=60 * 10**9)),
        ("1024", MaxMemory(each=1024)),
        ("0", MaxMemory(each=0)),
        ("0=4GiB,cpu=60GiB", MaxMemory(by_device={"0": 4 << 30, "cpu": 60 << 30})),
        ("11 = 2MiB , 3=1KiB", MaxMemory(by_device={"11": 2 << 20, "3": 1 << 10})),
    ],
)
def test_size_or_sizes_by_device_are_read(text, limits):
    assert MEMORY.parse(text, "--aq-max-memory") == limits
    assert MaxMemory.parse(str(limits)) == limits


@pytest.mark.parametrize(
    "text",
    [
        *("", "much", "4 gigs", "-1GiB", "1e3", "nan", "9" * 30, "0=", "=4GiB", "cuda:0=4GiB"),
        *("0=1GiB,0=2GiB", "4GiB,cpu=1GiB", "disk=4GiB", "0=4GiB,"),
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(
        UsageError, match=r"^--aq-max-memory: .* give a size such as 4GiB, or sizes"
    ):
        MEMORY.parse(text, "--aq-max-memory")


def test_plain_size_is_that_of_each_device_that_computes():
    plain, named = MaxMemory(each=1), MaxMemory(by_device={"0": 2, "cpu": 3})
    assert [plain.of(d, computes=True) for d in ("0", "1", "cpu")] == [1, 1, 1]
    assert plain.of("cpu", computes=False) is None
    assert [named.of(d, computes=True) for d in ("0", "1", "cpu")] == [2, None, 3]
