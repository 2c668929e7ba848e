"""One session: its grid, who measures for whom, and what the controller does with results."""

import json
from dataclasses import replace

import pytest

from harness.config import effective_config
from harness.errors import CaptionError, ManifestError, ModelError, VocabularyError
from harness.manifest import read_manifest
from harness.results import ErrorLine, SkipLine, StructureLine
from harness.session import (
    AutoquantSession,
    error_message,
    manifest_message,
    skip_message,
    structure_message,
)
from harness.settings import read_settings
from harness.support import Status, Support


def open_session(rootdir, **given):
    settings = read_settings(lambda option: (given.get(option.name), option.flag))
    return AutoquantSession(settings, rootdir)


class Configs:
    """The part of a bench that says what a combination means, which needs no torch."""

    def config(self, combination):
        return effective_config(combination.pair, combination.granularity)


@pytest.fixture
def session(tmp_path):
    return open_session(tmp_path, report_dir=str(tmp_path / "out"))


def test_the_grid_is_every_pair_under_every_overlay_in_every_size(tmp_path):
    session = open_session(tmp_path)
    assert (len(session.combinations), len(session.cases)) == (24 * 10, 24 * 10 * 3)
    assert len({case.case_id for case in session.cases}) == 720
    assert session.cases[0].case_id == "tiny-qwen3-vl/wfp4_afp16/default/small/gradient"


def test_options_narrow_the_grid_and_keep_its_order(tmp_path):
    session = open_session(
        tmp_path,
        pairs="wint8_aint8 wint4_aint8",
        granularities="w_group64,default",
        sizes="medium,small",
        method="kl_div",
    )
    assert [case.case_id for case in session.cases] == [
        f"tiny-qwen3-vl/{pair}/{granularity}/{size}/kl_div"
        for size in ("small", "medium")
        for pair in ("wint8_aint8", "wint4_aint8")
        for granularity in ("default", "w_group64")
    ]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"pairs": "wint4_aint9"}, VocabularyError, "did you mean 'wint4_aint8'"),
        ({"granularities": "w_group96"}, VocabularyError, "w_group64"),
        ({"sizes": "huge"}, VocabularyError, "small, medium, large"),
        ({"model": "no such model"}, VocabularyError, "tiny-qwen3-vl"),
        ({"model": "."}, ModelError, "has no config.json"),
        ({"captions": "away.txt"}, CaptionError, "away.txt: does not exist"),
        ({"conf": "away"}, VocabularyError, "away"),
    ],
)
def test_a_wrong_option_is_found_before_anything_runs(tmp_path, monkeypatch, given, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        open_session(tmp_path, **given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ({}, "reports/tmp"),
        ({"publish": True}, "reports"),
        ({"report_dir": "/elsewhere"}, "/elsewhere"),
    ],
)
def test_reports_go_where_the_options_say(tmp_path, given, root):
    assert open_session(tmp_path, **given).root == tmp_path / root


def select(session, *names):
    """Select cases by ``pair/granularity/size`` in this order, and return them."""
    known = {case.case_id.split("/", 1)[1].rsplit("/", 1)[0]: case for case in session.cases}
    chosen = [known[name] for name in names]
    session.select(chosen)
    return chosen


def test_the_first_selected_of_equal_configs_measures_for_all(session):
    # INT8 weights are per output channel by default; INT4 ones are in groups of 128.
    cases = select(
        session,
        "wint8_afp16/w_per_tensor/small",
        "wint8_afp16/w_per_out_channel/small",
        "wint8_afp16/default/small",
        "wint4_aint8/w_group128/small",
        "wint4_aint8/default/small",
        "wint8_afp16/default/medium",
    )
    first = [session.canonical(case, Configs()) for case in cases]
    assert first == [cases[i] for i in (0, 1, 1, 3, 3, 5)]
    session.select(cases[2:])
    assert session.canonical(cases[2], Configs()) == cases[2]


def test_a_case_without_effect_does_not_measure_for_others(session):
    _, default = select(
        session, "wint8_afp16/a_per_token_dynamic/small", "wint8_afp16/default/small"
    )
    assert session.canonical(default, Configs()) == default


def test_a_manifest_is_on_disk_when_it_has_been_received(session, manifest):
    session.receive(manifest_message(manifest), b"state")
    path = session.root / manifest.path
    assert read_manifest(path) == manifest
    assert (path.parent / "layer-sensitivity-report.md").is_file()
    assert path.with_name("wint4_aint8_autoquant_lm_autoquant_state.pt").read_bytes() == b"state"
    assert list(session.results.cases) == [manifest.case.case_id]


def test_messages_survive_as_plain_json_text(session, manifest):
    case, broken = session.cases[:2]
    refused = Support(status=Status.UNSUPPORTED, reason="ValueError: größe | <b>\n")
    structure = StructureLine(
        pair="p",
        granularity="g",
        status="supported",
        reason="",
        format_name="F",
        effective_bits=4.25,
        digest="d",
    )
    messages = [
        manifest_message(manifest),
        skip_message(case, refused),
        structure_message(structure),
        error_message(broken, "out of memory"),
    ]
    for message in messages:
        json.loads(message, parse_constant=pytest.fail)
        session.receive(message, None)
    results = session.results
    assert results.skips == {
        case.case_id: SkipLine(
            case_id=case.case_id, status="unsupported", reason="ValueError: größe | <b>\n"
        )
    }
    assert results.structures == {("p", "g"): structure}
    assert results.errors == {
        broken.case_id: ErrorLine(case_id=broken.case_id, problem="out of memory")
    }


def test_a_case_reported_again_replaces_its_first_report(session, manifest):
    failed = replace(
        manifest, case=replace(manifest.case, status="failed", problems=("worker died",))
    )
    session.receive(manifest_message(failed), None)
    session.receive(manifest_message(manifest), None)
    assert [line.status for line in session.results.cases.values()] == ["measured"]


def test_the_summary_is_written_at_the_end_and_only_if_something_of_ours_ran(session, manifest):
    assert session.finish() == ()
    assert not session.root.exists()
    session.receive(manifest_message(manifest), None)
    assert session.finish() == (session.root / "summary.md", session.root / "summary.json")
    summary = json.loads((session.root / "summary.json").read_text())
    assert summary["counts"]["measured"] == 1


def test_an_unwritable_report_folder_is_found_before_the_first_case(tmp_path):
    (tmp_path / "taken").write_text("a file")
    session = open_session(tmp_path, report_dir=str(tmp_path / "taken"))
    with pytest.raises(ManifestError, match="--aq-report-dir"):
        session.check_report_folder()


def test_reports_that_cannot_be_written_are_remembered_and_lose_no_result(tmp_path, manifest):
    (tmp_path / "taken").write_text("a file")
    session = open_session(tmp_path, report_dir=str(tmp_path / "taken"))
    session.receive(manifest_message(manifest), None)
    assert session.finish() == ()
    assert list(session.results.cases) == [manifest.case.case_id]
    said = session.results.write_errors
    assert [error.split(": cannot be written")[0] for error in said] == [
        str(tmp_path / "taken" / manifest.path),
        str(tmp_path / "taken" / "summary.md"),
    ]
