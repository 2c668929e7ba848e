"""The embedded model that engines score."""

import pytest
from builders import load_tiny


@pytest.fixture(scope="module")
def tiny():
    return load_tiny()
