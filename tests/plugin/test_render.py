"""``aq-harness render`` after a real run, where torch cannot be imported."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest


@pytest.fixture
def root(sweep, tmp_path):
    """A copy of the sweep's reports."""
    return Path(shutil.copytree(sweep.root, tmp_path / "reports" / "tmp"))


@pytest.fixture
def python(tmp_path):
    """Run Python where torch, transformers and modelopt raise when they are imported."""
    for name in ("torch", "transformers", "modelopt"):
        (tmp_path / "absent" / name).mkdir(parents=True)
        module = tmp_path / "absent" / name / "__init__.py"
        module.write_text("raise ImportError('not on this machine')")
    paths = os.pathsep.join([str(tmp_path / "absent"), os.environ.get("PYTHONPATH", "")])

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def render(python):
    """Run ``aq-harness render``; return its exit status and its lines."""

    def run(folder):
        done = python("-m", "pytest_autoquant.cli", "render", str(folder))
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_importing_torch_fails_here(python):
    assert "ImportError: not on this machine" in python("-c", "import torch").stderr


def test_deleted_and_edited_layer_reports_are_restored(render, root):
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
    assert render(root)[0] == 0
    check_identical(root, before)


def check_identical(root, before):
    after = contents(root)
    assert after.keys() == before.keys()
    for name, content in before.items():
        assert after[name] == content, name


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("changed")])
def test_page_pictures_and_summary_are_restored(render, root, spoil):
    before = contents(root)
    for name in ("index.html", "summary.md", "grid-tiny-qwen3-vl-small.svg"):
        spoil(root / name)
    _, lines = render(root)
    counted, wrote = lines[-2:]
    assert counted.startswith(f"{root}: 5 measured, 2 aliases, 0 failed, 5 skipped ")
    assert wrote == f"wrote {root / 'index.html'}"
    check_identical(root, before)


def test_broken_and_newer_manifests_are_reported_and_the_rest_rendered(render, root):
    broken, newer, *_ = sorted(root.rglob("*_quant_manifest.json"))
    broken.write_text("{")
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "schema_version": 999}))
    status, lines = render(root)
    assert status == 1
    left_out = [line.removeprefix("left out: ") for line in lines if line.startswith("left out: ")]
    first, second = (path.relative_to(root).as_posix() for path in (broken, newer))
    assert len(left_out) == 2
    assert left_out[0].startswith(f"{first}: ")
    assert "is not JSON" in left_out[0]
    assert left_out[1].startswith(f"{second}: ")
    assert "written by a newer version: schema 999" in left_out[1]
    assert lines[-1] == f"wrote {root / 'index.html'}"
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


def test_unreadable_summary_is_reported_and_the_cases_rendered(render, root):
    (root / "summary.json").write_text("{")
    status, lines = render(root)
    assert status == 1
    (left_out,) = (line for line in lines if line.startswith("left out: "))
    assert left_out.startswith("left out: summary.json: ")
    assert len(json.loads((root / "summary.json").read_text())["cases"]) == 7
    check_left_out(root, [left_out.removeprefix("left out: ")])


def test_published_reports_exclude_the_unpublished_ones_below_them(render, root):
    before = contents(root.parent)
    assert render(root.parent) == (2, [])
    check_identical(root.parent, before)
