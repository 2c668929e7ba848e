"""Everything that an in-process run imports, imported before pytester can forget it."""

import pytest
from builders import import_everything, one_thread


@pytest.fixture(scope="package", autouse=True)
def imported():
    with one_thread():
        import_everything()
        yield
