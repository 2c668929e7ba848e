"""What pytest does instead of running tests: ``--aq-list`` and ``--aq-report-only``."""

from __future__ import annotations

import pytest

from harness.plugin.access import as_usage_error, session_of


def list_matrix(config: pytest.Config) -> int:
    """Print which pair runs under which overlay here, and why the others do not."""
    from harness.matrix import layer_misfits, render_matrix

    session = session_of(config)
    with as_usage_error():
        bench = session.bench(lambda *_: None, print)
        print(render_matrix(bench, session.combinations))
        trust = session.settings.trust_remote_code
        for line in layer_misfits(bench, session.source, session.combinations, trust=trust):
            print(line)
    return pytest.ExitCode.OK


def report_only(config: pytest.Config) -> int:
    """Rebuild every report under the report root from its manifests."""
    from harness.report.overview import counts_sentence
    from harness.report.writer import rebuild

    session = session_of(config)
    with as_usage_error():
        results, left_out = rebuild(session.root)
    for reason in left_out:
        print(f"left out: {reason}")
    print(f"{session.root}: {counts_sentence(results)}")
    return pytest.ExitCode.TESTS_FAILED if left_out else pytest.ExitCode.OK
