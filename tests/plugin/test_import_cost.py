"""An unrelated pytest run pays nothing for the plugin being installed."""

import json

import pytest

GUARD = """
    import json, os, sys
    from pathlib import Path

    def pytest_sessionfinish(session):
        seen = {
            "has_plugin": session.config.pluginmanager.hasplugin("autoquant"),
            "heavy": sorted({"torch", "transformers", "modelopt"} & set(sys.modules)),
        }
        Path(__file__).with_name(f"{os.getpid()}.seen").write_text(json.dumps(seen))
"""


@pytest.fixture
def imported(project):
    """Run an inner pytest; return what each of its processes had imported at its end."""
    project.makeconftest(GUARD)

    def run(test, *arguments):
        path = project.makepyfile(test_unrelated=test)
        result = project.runpytest_subprocess("-p", "no:cacheprovider", *arguments or [path])
        assert result.ret == pytest.ExitCode.OK
        seen = [json.loads(file.read_text()) for file in project.path.glob("*.seen")]
        assert all(process["has_plugin"] for process in seen)
        return [process["heavy"] for process in seen]

    return run


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        ((), 1),
        (("-n1", "test_unrelated.py"), 2),
        (("test_unrelated.py", "--aq-pairs=wint8_afp16", "--aq-device=cpu"), 1),
        (("--collect-only", "cases"), 1),
    ],
    ids=["plain", "xdist", "with options", "collecting the cases"],
)
def test_a_run_without_cases_imports_no_torch(imported, arguments, processes):
    assert imported("def test_passes(): pass", *arguments) == [[]] * processes


def test_the_guard_sees_a_test_that_imports_torch(imported):
    assert imported("def test_imports(): import torch") == [["torch"]]
