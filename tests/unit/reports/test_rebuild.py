"""Reports rebuilt from the records in a folder."""

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from builders import files_in
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.write import write_case


def test_every_report_is_rebuilt_byte_for_byte(tmp_path, session):
    written = files_in(tmp_path)
    for pattern in ("*report.*", "*.svg", "index.html", "summary.md"):
        for path in tmp_path.rglob(pattern):
            path.unlink()
    results = rebuild(tmp_path)
    assert results.left_out == []
    assert set(results.cases) == set(session.cases)
    assert files_in(tmp_path) == written


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["layer_sensitivity"].popitem(),
        lambda document: document["autoquant_state"].update(total_score=float("nan")),
        lambda document: document["model"].update(id="\ud800"),
    ],
    ids=["ranking of a missing group", "NaN", "half a character"],
)
def test_invalid_manifest_is_left_out_and_named(tmp_path, session, manifests, change):
    broken = tmp_path / manifests[1].path
    document = json.loads(broken.read_text())
    change(document)
    broken.write_text(json.dumps(document))
    results = rebuild(tmp_path)
    (left_out,) = results.left_out
    assert left_out.startswith(f"{broken.relative_to(tmp_path).as_posix()}: ")
    assert set(results.cases) == {m.case.case_id for m in (manifests[0], manifests[2])}
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["counts"]["measured"] == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON: "),
        (b"[]", "is not a session summary: "),
        (b'{"schema_version": 1, "skipped": [[]]}', "is not a valid session summary: "),
    ],
)
def test_broken_last_summary_is_named_and_replaced(tmp_path, session, content, problem):
    (tmp_path / "summary.json").write_bytes(content)
    results = rebuild(tmp_path)
    assert (len(results.cases), len(results.skips)) == (3, 1)
    (reason,) = results.left_out
    assert reason.startswith(f"summary.json: {problem}")
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["measured"] == 3


@pytest.mark.parametrize("folder", ["away", "docs"])
def test_folder_without_records_is_refused_and_left_as_it_is(tmp_path, folder):
    (tmp_path / "docs").mkdir()
    for name in ("schemes.md", "summary.json", "index.html", "grid-of-things.svg"):
        (tmp_path / "docs" / name).write_text("somebody's")
    before = files_in(tmp_path)
    with pytest.raises(RecordError, match=f"^{tmp_path / folder}: holds no manifest; run some"):
        rebuild(tmp_path / folder)
    assert files_in(tmp_path) == before


def test_second_manifest_of_a_case_is_left_out_by_name(tmp_path, manifest):
    for folder in ("a", "b"):
        write_case(tmp_path / folder, manifest)
    results = rebuild(tmp_path)
    path = manifest.path.as_posix()
    assert [case.manifest for case in results.cases.values()] == [f"a/{path}"]
    assert results.left_out == [f"b/{path}: is the same case as a/{path}; delete one"]


@pytest.mark.parametrize("below", ["", "(old) [1]", "a|b", "<script>", "100%", "x#y?z"])
def test_links_to_reports_survive_odd_folder_names(tmp_path, manifest, render, below):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    (folder / manifest.path.name).write_text(dump_manifest(manifest))
    results = rebuild(tmp_path)
    assert results.left_out == []
    page = render(summary_markdown(report_model(results)))
    (cases,) = [table for table in page.tables if table[0][0] == "pair"]
    assert [len(row) for row in cases] == [8, 8]
    assert "script" not in page.tags
    assert [unquote(urlsplit(link).path) for link in page.links] == [
        (Path(below) / "layer-sensitivity-report.md").as_posix()
    ]
