"""``--aq-report-only`` rebuilds reports from manifests, on a machine without torch."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

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
    for pattern in (
        "layer-sensitivity-report.md",
        "layer-sensitivity-report.json",
        "layer-map.svg",
    ):
        paths = sorted(root.rglob(pattern))
        assert len(paths) == 7
        for number, path in enumerate(paths):
            path.unlink() if number % 2 else path.write_text("changed")
    assert rebuild().ret == pytest.ExitCode.OK
    check_identical(root, before)


def check_identical(root, before):
    after = contents(root)
    assert after.keys() == before.keys()
    for name, content in before.items():
        assert after[name] == content, name


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("changed")])
def test_the_page_its_pictures_and_the_summary_come_back_identical(rebuild, root, spoil):
    before = contents(root)
    for name in ("index.html", "summary.md", "grid-tiny-qwen3-vl-small.svg"):
        spoil(root / name)
    result = rebuild()
    counted, wrote = result.outlines[-2:]
    assert counted.startswith(f"{root}: 5 measured, 2 aliases, 0 failed, 5 skipped ")
    assert wrote == f"wrote {root / 'index.html'}"
    check_identical(root, before)


def test_a_broken_and_a_newer_manifest_are_named_and_the_rest_rebuilt(rebuild, root):
    broken, newer, *_ = sorted(root.rglob("*_quant_manifest.json"))
    broken.write_text("{")
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "schema_version": 999}))
    result = rebuild()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    left_out = [
        line.removeprefix("left out: ") for line in result.outlines if line.startswith("left out: ")
    ]
    first, second = (path.relative_to(root).as_posix() for path in (broken, newer))
    assert len(left_out) == 2
    assert left_out[0].startswith(f"{first}: is not JSON")
    assert left_out[1].startswith(f"{second}: written by a newer version: schema 999")
    assert result.outlines[-1] == f"wrote {root / 'index.html'}"
    summary = json.loads((root / "summary.json").read_text())
    assert len(summary["cases"]) == 5
    check_left_out(root, left_out)


def check_left_out(root, reasons):
    """Every report names the files and the reasons, and no folder of the machine."""
    assert json.loads((root / "summary.json").read_text())["left_out"] == reasons
    page = unescape((root / "index.html").read_text())
    assert page.count("Left out") == 1
    markdown = re.sub(r"\\(?=[*_])", "", (root / "summary.md").read_text())
    assert "\n## Left out\n" in markdown
    for reason in reasons:
        assert f"<li>{reason}</li>" in page
        assert f"\n- {reason}\n" in markdown
    for path in root.glob("*.*"):
        assert str(root) not in path.read_text(), path


def test_a_summary_that_cannot_be_read_is_named_and_the_cases_are_rebuilt(rebuild, root):
    (root / "summary.json").write_text("{")
    result = rebuild()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (left_out,) = (line for line in result.outlines if line.startswith("left out: "))
    assert left_out.startswith("left out: summary.json: is not JSON: Expecting property name ")
    assert len(json.loads((root / "summary.json").read_text())["cases"]) == 7
    check_left_out(root, [left_out.removeprefix("left out: ")])


NONE_HERE = "no *_autoquant_lm_quant_manifest.json is here; run some cases first"


def check_none_here(result, root):
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    left_out, counted, wrote = result.outlines
    assert left_out == f"left out: {NONE_HERE}"
    assert counted.endswith(": 0 measured, 0 aliases, 0 failed, 0 skipped, 0 structure cases")
    assert wrote.startswith("wrote ")
    assert wrote.endswith("index.html")
    assert {path.name for path in root.iterdir() if path.is_file()} == {
        *("index.html", "summary.md", "summary.json")
    }
    assert json.loads((root / "summary.json").read_text())["cases"] == []
    check_left_out(root, [NONE_HERE])


def test_published_reports_leave_the_unpublished_ones_below_them_alone(rebuild, root):
    before = contents(root)
    check_none_here(rebuild("--aq-publish"), root.parent)
    check_identical(root, before)


def test_a_folder_without_manifests_gets_a_page_that_says_so_and_fails(rebuild, project):
    (project.path / "empty").mkdir()
    check_none_here(rebuild("--aq-report-dir=empty"), project.path / "empty")
    assert [path.name for path in project.path.glob("*.html")] == []
