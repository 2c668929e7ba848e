"""The embedded model, loaded once per module."""

import pytest


@pytest.fixture(scope="module")
def model(tiny):
    return tiny
