"""An unrelated pytest run imports next to nothing of the plugin."""

import json
import re

import pytest

GUARD = """
    import json, os, sys
    from pathlib import Path

    def pytest_sessionfinish(session):
        heavy = {"torch", "transformers", "modelopt", "yaml", "pydantic", "numpy"}
        ours = {name for name in sys.modules if name.split(".")[0] == "pytest_autoquant"}
        plugins = [name for name, _ in session.config.pluginmanager.list_name_plugin()]
        seen = {
            "heavy": sorted(heavy & set(sys.modules)),
            "ours": sorted(ours),
            "plugins": sorted(name for name in plugins if "autoquant" in name),
            "options": sorted(name for name in vars(session.config.option) if "aq_" in name),
        }
        Path(__file__).with_name(f"{os.getpid()}.seen").write_text(json.dumps(seen))
"""
ENTRY = ["pytest_autoquant", "pytest_autoquant.plugin", "pytest_autoquant.plugin.worker"]
ENTRY.append("pytest_autoquant.plugin.worker.fixtures")


@pytest.fixture
def seen(project):
    """Run an inner pytest; return what each of its processes had at its end."""
    project.makeconftest(GUARD)
    ini = project.path / "pytest.ini"
    ini.write_text(re.sub(r"^aq_.*\n", "", ini.read_text(), flags=re.M))  # not unrelated

    def run(test, *arguments):
        path = project.makepyfile(test_unrelated=test)
        result = project.runpytest_subprocess("-p", "no:cacheprovider", *arguments or [path])
        assert result.ret == pytest.ExitCode.OK
        return [json.loads(file.read_text()) for file in project.path.glob("*.seen")]

    return run


def test_an_unrelated_run_imports_the_entry_modules_alone(seen):
    (process,) = seen("def test_passes(): pass")
    assert process["heavy"] == []
    assert process["ours"] == ENTRY
    assert process["options"] == []
    assert process["plugins"] == [
        "pytest_autoquant.plugin",
        "pytest_autoquant.plugin.worker.fixtures",
    ]


def test_an_unrelated_run_with_xdist_imports_no_library(seen):
    processes = seen("def test_passes(): pass", "-n1", "test_unrelated.py")
    assert [process["heavy"] for process in processes] == [[], []]
    assert all("pytest_autoquant.options" not in process["ours"] for process in processes)


def test_collecting_the_cases_imports_no_torch(seen):
    (process,) = seen("def test_passes(): pass", "--collect-only", "cases")
    assert not {"torch", "transformers", "modelopt"} & set(process["heavy"])
    assert "autoquant-controller" in process["plugins"]


def test_the_guard_sees_a_test_that_imports_torch(seen):
    (process,) = seen("def test_imports(): import torch")
    assert "torch" in process["heavy"]
