"""What pytest does instead of running tests: ``--aq-list`` and ``--aq-report-only``."""

from __future__ import annotations

import pytest

from pytest_autoquant.plugin.pytest_config import as_usage_error, session_of


def list_matrix(config: pytest.Config) -> int:
    """Print which pair runs under which overlay here, and why the others do not."""
    from pytest_autoquant.cli.support_matrix import matrix_report

    with as_usage_error():
        print(matrix_report(session_of(config)))
    return pytest.ExitCode.OK


def report_only(config: pytest.Config) -> int:
    """Rebuild every report under the report root from its manifests."""
    from pytest_autoquant.reports.rebuild import rebuild, rebuilt_report

    root = session_of(config).root
    with as_usage_error():
        results = rebuild(root)
    print(rebuilt_report(root, results))
    return pytest.ExitCode.TESTS_FAILED if results.left_out else pytest.ExitCode.OK
