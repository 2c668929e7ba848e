"""Reports on disk, as a session writes them."""

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from builders import changed, files_in, results_of
from pytest_autoquant.errors import WriteError
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records import outcome_log
from pytest_autoquant.manifests.records.outcomes import SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest
from pytest_autoquant.reports.charts.layer_map import draw_layer_map
from pytest_autoquant.reports.ownership import MARK
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import complete_case, draw_layer_maps, write_case, write_summary

FOLDER = Path("toy/weight-int4-act-int8/a_per_token_dynamic/small")
MANIFEST = FOLDER / "wint4_aint8_autoquant_lm_quant_manifest.json"


@pytest.mark.parametrize("state", [None, b"state"])
def test_files_of_a_case(tmp_path, manifest, state):
    path = write_case(tmp_path, manifest, state)
    assert path == tmp_path / MANIFEST
    assert read_manifest(path) == manifest
    written = files_in(tmp_path / FOLDER)
    assert written.pop("wint4_aint8_autoquant_lm_autoquant_state.pt", None) == state
    assert set(written) == {
        "wint4_aint8_autoquant_lm_quant_manifest.json",
        "layer-sensitivity-report.md",
        "layer-sensitivity-report.json",
    }


def test_manifest_is_on_disk_before_any_report(tmp_path, manifest, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_autoquant.reports.write.write_layer_reports", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_case(tmp_path, manifest)
    assert list(files_in(tmp_path / FOLDER)) == [MANIFEST.name]
    assert read_manifest(tmp_path / MANIFEST) == manifest
    monkeypatch.undo()
    complete_case(tmp_path, manifest)
    reports = {"layer-sensitivity-report.md", "layer-sensitivity-report.json"}
    assert set(files_in(tmp_path / FOLDER)) == {MANIFEST.name} | reports


def test_layer_map_is_drawn_once_and_deleted_with_a_new_measurement(tmp_path, manifest):
    path, case = tmp_path / FOLDER / "layer-map.svg", case_result_of(manifest)
    write_case(tmp_path, manifest)
    draw_layer_maps(tmp_path, [case])
    assert path.read_text() == draw_layer_map(case)
    path.write_text("mine")
    draw_layer_maps(tmp_path, [case])
    assert path.read_text() == "mine"
    draw_layer_maps(tmp_path, [case], again=True)
    assert path.read_text() == draw_layer_map(case)
    write_case(tmp_path, manifest)
    assert not path.exists()


def test_layer_reports_replace_older_ones(tmp_path, manifest, render):
    write_case(tmp_path, manifest)
    write_case(
        tmp_path,
        changed(manifest, "autoquant_state", is_satisfied=False, minimum_effective_bits=9.5),
    )
    page = render((tmp_path / FOLDER / "layer-sensitivity-report.md").read_text())
    assert "the smallest reachable is 9.5," in page.text
    report = json.loads((tmp_path / FOLDER / "layer-sensitivity-report.json").read_text())
    assert report["autoquant_state"]["is_satisfied"] is False


def test_summary_files_are_at_the_root_and_link_to_reports(tmp_path, session, render):
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "index.html",
        "summary.md",
        "summary.json",
        "grid-toy-small.svg",
        "outcomes.jsonl",
    }
    links = render((tmp_path / "summary.md").read_text()).links
    assert len(links) == 3
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_outcome_log_is_read_once_for_a_summary(tmp_path, session, monkeypatch):
    roots, read = [], outcome_log.read
    monkeypatch.setattr(outcome_log, "read", lambda root: roots.append(root) or read(root))
    write_summary(tmp_path, session)
    assert roots == [tmp_path]


def test_unwritable_report_is_named(tmp_path, manifest):
    root = tmp_path / "reports"
    root.write_text("a file in the way")
    with pytest.raises(WriteError, match=f"^{root / MANIFEST}: cannot be written"):
        write_case(root, manifest)
    with pytest.raises(WriteError, match=f"^{root / 'summary.json'}: cannot be written"):
        write_summary(root, SessionResults())


def test_summary_does_not_depend_on_the_order_in_which_cases_arrived(tmp_path, session):
    written = files_in(tmp_path)
    session.cases = dict(reversed(session.cases.items()))
    write_summary(tmp_path, session)
    assert files_in(tmp_path) == written


def test_only_views_with_a_score_have_a_picture_and_outdated_ones_are_deleted(tmp_path, case_of):
    (tmp_path / "grid-toy-large.svg").write_text(MARK)
    cases = (case_of(), case_of(method="kl_div"), case_of({"a": None}, model="broken"))
    skip = SkippedCase(case_id="skipped/p/g/small/gradient", status="s", reason="r")
    write_summary(tmp_path, results_of(*cases, skip))
    assert {path.name for path in tmp_path.glob("grid-*.svg")} == {
        "grid-toy-small.svg",
        "grid-toy-small-kl_div.svg",
    }


def test_log_that_cannot_be_read_is_named_and_left_as_it_is(tmp_path, case_of):
    log = tmp_path / "outcomes.jsonl"
    log.write_text('{"schema_version": 1}\n')
    skip = SkippedCase(case_id="toy/p/g/small/gradient", status="s", reason="r")
    write_summary(tmp_path, results_of(case_of(), skip))
    assert log.read_text() == '{"schema_version": 1}\n'
    (reason,) = json.loads((tmp_path / "summary.json").read_text())["left_out"]
    assert reason.startswith("outcomes.jsonl, line 1: ")
