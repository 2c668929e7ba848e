"""``--aq-report-only`` rebuilds reports from manifests, on a machine without torch."""

import json
import shutil

import pytest


@pytest.fixture
def rebuild(sweep, project, monkeypatch):
    """Rebuild in a copy of the sweep where torch, transformers and modelopt cannot be imported."""
    shutil.copytree(sweep.folder / "reports", project.path / "reports")
    for name in ("torch", "transformers", "modelopt"):
        (project.path / "absent" / name).mkdir(parents=True)
        absent = project.path / "absent" / name / "__init__.py"
        absent.write_text("raise ImportError('not on this machine')")
    monkeypatch.setenv("PYTHONPATH", str(project.path / "absent"))
    return lambda *arguments: project.runpytest_subprocess("--aq-report-only", *arguments)


@pytest.fixture
def root(project):
    return project.path / "reports" / "tmp"


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_the_guard_sees_an_import_of_torch(rebuild, project):
    result = project.runpytest_subprocess("cases", "--aq-pairs=wint8_afp16", "-x")
    assert "not on this machine" in result.stdout.str()


def test_lost_and_changed_layer_reports_come_back_identical(rebuild, root):
    before = contents(root)
    for number, path in enumerate(sorted(root.rglob("layer-sensitivity-report.*"))):
        path.unlink() if number % 2 else path.write_text("changed")
    assert rebuild().ret == pytest.ExitCode.OK
    after = contents(root)
    assert after.keys() == before.keys()
    for name in before.keys() - {"summary.md", "summary.json"}:
        assert after[name] == before[name], name


def test_the_summary_comes_back_identical_from_manifests_and_the_last_summary(rebuild, root):
    before = contents(root)
    (root / "summary.md").unlink()
    result = rebuild()
    result.stdout.fnmatch_lines("*5 measured, 2 aliases, 0 failed, 5 skipped *")
    assert (root / "summary.json").read_text() == before["summary.json"]
    assert (root / "summary.md").read_text() == before["summary.md"]


def test_a_broken_and_a_newer_manifest_are_named_and_the_rest_rebuilt(rebuild, root):
    broken, newer, *_ = sorted(root.rglob("*_quant_manifest.json"))
    broken.write_text("{")
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "schema_version": 999}))
    result = rebuild()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    left_out = [line for line in result.outlines if line.startswith("left out: ")]
    assert len(left_out) == 2
    assert left_out[0].startswith(f"left out: {broken}: is not JSON")
    assert left_out[1].startswith(f"left out: {newer}: written by a newer version: schema 999")
    assert len(json.loads((root / "summary.json").read_text())["cases"]) == 5


def test_published_reports_leave_the_unpublished_ones_below_them_alone(rebuild, project):
    result = rebuild("--aq-publish")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert not (project.path / "reports" / "summary.md").exists()


def test_a_folder_without_manifests_is_a_usage_error(rebuild, project):
    (project.path / "empty").mkdir()
    result = rebuild("--aq-report-dir=empty")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (message,) = filter(None, result.errlines)
    assert message.startswith("ERROR: empty: holds no *")
    assert message.endswith("_quant_manifest.json; run some cases first")
    assert list((project.path / "empty").iterdir()) == []
