"""One session: its grid, who measures for whom, and what the controller does with results."""

import json
from dataclasses import replace
from itertools import chain

import pytest
from pytest_autoquant.allocation.scheme import builtin_schemes
from pytest_autoquant.errors import CaptionError, ModelError, RecordError, UsageError, WriteError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.manifests.fingerprint import fingerprint_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.scheme_manifest import (
    ExportRecord,
    dump_scheme,
    load_scheme,
)
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest, read_manifest
from pytest_autoquant.manifests.session_summary import read_summary
from pytest_autoquant.modelopt_support.status import Status, Support
from pytest_autoquant.options.settings import read_settings
from pytest_autoquant.plugin.outcome import (
    error_message,
    kept_message,
    manifest_message,
    scheme_message,
    skip_message,
    structure_message,
)
from pytest_autoquant.plugin.session import AutoquantSession
from pytest_autoquant.regression.baselines import PASSED
from pytest_autoquant.reports.write import write_case


def open_session(rootdir, **given):
    settings = read_settings(lambda option: (given.get(option.name), option.flag))
    return AutoquantSession(settings, rootdir)


class Configs:
    """The part of a bench that says what a combination means, which needs no torch."""

    def config(self, combination):
        return resolve(combination.pair, combination.granularity)


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
        ({"pairs": "wint4_aint9"}, UsageError, "did you mean 'wint4_aint8'"),
        ({"granularities": "w_group96"}, UsageError, "w_group64"),
        ({"sizes": "huge"}, UsageError, "small, medium, large"),
        ({"model": "no such model"}, UsageError, "tiny-qwen3-vl"),
        ({"model": "."}, ModelError, "has no config.json"),
        ({"captions": "away.txt"}, CaptionError, "away.txt: does not exist"),
        ({"conf": "away"}, UsageError, "away"),
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
    session.select(chosen, workers=1)
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
    session.select(cases[2:], workers=1)
    assert session.canonical(cases[2], Configs()) == cases[2]


def test_a_case_without_effect_does_not_measure_for_others(session):
    _, default = select(
        session, "wint8_afp16/a_per_token_dynamic/small", "wint8_afp16/default/small"
    )
    assert session.canonical(default, Configs()) == default


def test_a_manifest_is_on_disk_when_it_has_been_received(session, manifest):
    session.receive(manifest_message(manifest).dump(), b"state")
    path = session.root / manifest.path
    assert read_manifest(path) == manifest
    assert (path.parent / "layer-sensitivity-report.md").is_file()
    assert path.with_name("wint4_aint8_autoquant_lm_autoquant_state.pt").read_bytes() == b"state"
    assert list(session.results.cases) == [manifest.case.case_id]


def test_messages_survive_as_plain_json_text(session, manifest):
    case, broken = session.cases[:2]
    refused = Support(status=Status.UNSUPPORTED, reason="ValueError: größe | <b>\n")
    structure = StructureCheck(
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
        skip_message(case, refused, 4.125),
        structure_message(structure),
        error_message(broken, "out of memory"),
    ]
    for message in messages:
        text = message.dump()
        json.loads(text, parse_constant=pytest.fail)
        session.receive(text, None)
    results = session.results
    assert results.skips == {
        case.case_id: SkippedCase(
            case_id=case.case_id,
            status="unsupported",
            reason="ValueError: größe | <b>\n",
            effective_bits=4.125,
        )
    }
    assert results.structures == {("p", "g"): structure}
    assert results.errors == {
        broken.case_id: FailedCase(case_id=broken.case_id, problem="out of memory")
    }


def test_a_case_reported_again_replaces_its_first_report(session, manifest):
    failed = replace(
        manifest, case=replace(manifest.case, status="failed", problems=("worker died",))
    )
    session.receive(manifest_message(failed).dump(), None)
    session.receive(manifest_message(manifest).dump(), None)
    assert [line.status for line in session.results.cases.values()] == ["measured"]


def test_the_summary_is_written_at_the_end_and_only_if_something_of_ours_ran(session, manifest):
    assert session.finish() == ()
    assert not session.root.exists()
    session.receive(manifest_message(manifest).dump(), None)
    names = ("index.html", "summary.md", "summary.json")
    assert session.finish() == tuple(session.root / name for name in names)
    assert all((session.root / name).is_file() for name in names)
    summary = json.loads((session.root / "summary.json").read_text())
    assert summary["counts"]["measured"] == 1


def test_an_unwritable_report_folder_is_found_before_the_first_case(tmp_path):
    (tmp_path / "taken").write_text("a file")
    session = open_session(tmp_path, report_dir=str(tmp_path / "taken"))
    with pytest.raises(WriteError, match="--aq-report-dir"):
        session.check_folders()


def test_reports_that_cannot_be_written_are_remembered_and_lose_no_result(tmp_path, manifest):
    (tmp_path / "taken").write_text("a file")
    session = open_session(tmp_path, report_dir=str(tmp_path / "taken"))
    session.receive(manifest_message(manifest).dump(), None)
    assert session.finish() == ()
    assert list(session.results.cases) == [manifest.case.case_id]
    said = session.results.write_errors
    assert [error.split(": cannot be written")[0] for error in said] == [
        str(tmp_path / "taken" / manifest.path.with_name("layer-map.svg")),
        str(tmp_path / "taken" / "summary.json"),
    ]


# Shards


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_take_every_case_and_combination_exactly_once(tmp_path, count):
    sessions = [open_session(tmp_path, shard=f"{i}/{count}") for i in range(1, count + 1)]
    cases = sessions[0].cases
    taken = [session.select(cases, workers=1) for session in sessions]
    assert sorted(case.case_id for case in chain(*taken)) == sorted(c.case_id for c in cases)
    assert all(taken)
    takers = [sum(s.takes(c) for s in sessions) for c in sessions[0].combinations]
    assert takers == [1] * 240


def test_a_shard_keeps_the_order_of_its_cases(tmp_path):
    session = open_session(tmp_path, shard="2/3")
    own = session.select(session.cases, workers=4)
    places = [session.cases.index(case) for case in own]
    assert places == sorted(places)


def test_without_a_shard_every_selected_case_is_the_sessions_own(session):
    chosen = session.cases[3:40]
    assert session.select(chosen, workers=2) == chosen


def test_a_shard_knows_the_case_of_another_shard_that_measures_for_its_own(tmp_path):
    session = open_session(
        tmp_path, pairs="wint8_afp16", granularities="default,w_per_out_channel", shard="2/2"
    )
    # Both configs are the same; this shard has the large cases alone.
    own = session.select(session.cases, workers=1)
    chosen = {case.test_id: case for case in session.cases}
    same, first = chosen["wint8_afp16-w_per_out_channel-small"], chosen["wint8_afp16-default-small"]
    assert same not in own
    assert session.canonical(same, Configs()) == first


def test_a_summary_of_a_shard_says_which(tmp_path, manifest):
    session = open_session(tmp_path, report_dir=str(tmp_path / "out"), shard="2/3")
    session.receive(manifest_message(manifest).dump(), None)
    session.finish()
    assert json.loads((session.root / "summary.json").read_text())["shard"] == "2/3"


# Lost cases


def test_a_case_that_was_expected_and_sent_nothing_is_lost(session):
    first, second, third = session.cases[:3]
    session.expect([first, second])
    session.expect([second, third])
    session.receive(error_message(second, "out of memory").dump(), None)
    session.finish()
    assert session.results.lost == tuple(sorted((first.case_id, third.case_id)))


def test_a_session_that_lost_everything_still_writes_its_summary(session):
    session.expect(session.cases[:1])
    assert len(session.finish()) == 3
    summary = json.loads((session.root / "summary.json").read_text())
    assert summary["lost"] == [session.cases[0].case_id]


# Resume


class Measuring(Configs):
    """A bench that would measure with this fingerprint."""

    def __init__(self, found):
        self.found = found

    def fingerprint(self, case):
        return self.found


@pytest.fixture
def resumed(tmp_path, findings, manifest):
    """A resumed session whose report folder holds one case, and that case."""
    session = open_session(tmp_path, report_dir=str(tmp_path / "out"), resume=True)
    case = next(c for c in session.cases if c.test_id == findings.case.test_id)
    record = replace(manifest.case, case_id=case.case_id)
    model = replace(manifest.model, name=case.model)
    earlier = replace(manifest, case=record, model=model)
    write_case(session.root, earlier)
    return session, case, earlier


def test_a_resumed_session_keeps_a_case_measured_on_the_same_inputs(resumed):
    session, case, earlier = resumed
    bench = Measuring(fingerprint_of(earlier))
    assert session.changes(case, bench) == ()
    assert session.is_kept(case, bench)


def test_a_resumed_session_says_what_changed_since_a_case_was_measured(resumed):
    session, case, earlier = resumed
    bench = Measuring(replace(fingerprint_of(earlier), torch="2.12.0", device="cuda"))
    assert [change.field for change in session.changes(case, bench)] == ["device", "torch"]
    assert not session.is_kept(case, bench)


def test_a_case_that_was_never_measured_has_no_changes_and_is_not_kept(resumed):
    session, case, earlier = resumed
    bench = Measuring(fingerprint_of(earlier))
    other = replace(case, size="large")
    assert session.changes(other, bench) is None
    assert not session.is_kept(other, bench)


def test_without_resume_what_is_on_disk_is_not_looked_at(tmp_path, resumed):
    _, case, earlier = resumed
    session = open_session(tmp_path, report_dir=str(tmp_path / "out"))
    assert session.changes(case, Measuring(fingerprint_of(earlier))) is None


def test_a_kept_case_is_in_the_summary_as_it_was_measured(resumed):
    session, case, _ = resumed
    session.expect([case])
    assert session.receive(kept_message(case).dump(), None) == PASSED
    session.finish()
    assert [line.total_score for line in session.results.cases.values()] == [10.0]
    assert (session.results.kept, session.results.lost) == ({case.case_id}, ())


def test_a_kept_case_whose_manifest_has_vanished_fails(resumed):
    session, case, earlier = resumed
    session.expect([case])
    (session.root / earlier.path).unlink()
    verdict = session.receive(kept_message(case).dump(), None)
    said = f"{case.case_id}: its manifest vanished while the run was resumed; run it again"
    assert (verdict.outcome, verdict.text) == ("failed", said)
    assert session.results.failures == [FailedCase(case_id=case.case_id, problem=said)]


def test_why_a_case_ran_again_is_remembered(session, manifest):
    session.receive(replace(manifest_message(manifest), rerun="torch 2.10 -> 2.11").dump(), None)
    assert session.results.reruns == {manifest.case.case_id: "torch 2.10 -> 2.11"}


# The gate


@pytest.fixture
def gated(tmp_path, scored):
    """A gated session with a baseline of one group at 4.0, which may drift by a tenth."""
    baseline = scored({"a": 4.0})
    path = tmp_path / "blessed" / baseline.path
    path.parent.mkdir(parents=True)
    path.write_text(dump_manifest(baseline))
    return open_session(
        tmp_path,
        report_dir=str(tmp_path / "out"),
        baseline=str(tmp_path / "blessed"),
        tol_total="0.1",
        tol_group="0.1",
    )


def judged(session, manifest, **tolerances):
    message = replace(manifest_message(manifest), tolerances=tolerances or None)
    return session.receive(message.dump(), None)


def test_a_case_within_tolerance_passes_and_one_beyond_is_noted(gated, scored):
    assert judged(gated, scored({"a": 4.2})) == PASSED
    assert gated.results.gated == {}
    verdict = judged(gated, scored({"a": 4.8}))
    assert verdict.outcome == "failed"
    (case_id,) = gated.results.cases
    assert gated.results.gated == {case_id: verdict.text}


def test_a_drifted_case_is_written_all_the_same(gated, scored):
    drifted = scored({"a": 4.8})
    judged(gated, drifted)
    assert read_manifest(gated.root / drifted.path) == drifted


def test_a_marker_widens_the_tolerances_of_its_case_alone(gated, scored):
    assert judged(gated, scored({"a": 4.8}), total=0.3, group=0.3) == PASSED
    assert judged(gated, scored({"a": 4.8})).outcome == "failed"


def test_a_marker_that_is_wrong_fails_its_case_without_a_comparison(gated, scored):
    verdict = judged(gated, scored({"a": 4.0}), grup=0.3)
    assert verdict.outcome == "failed"
    assert verdict.text.startswith("marker aq_tolerance: grup=0.3 is not allowed")


def test_a_case_failed_by_a_wrong_marker_is_noted_as_gated(gated, scored):
    judged(gated, scored({"a": 4.0}), grup=0.3)
    assert list(gated.results.gated) == list(gated.results.cases)


def test_a_case_that_passes_when_it_is_run_again_is_no_longer_gated(gated, scored):
    judged(gated, scored({"a": 4.8}))
    judged(gated, scored({"a": 4.0}))
    assert gated.results.gated == {}


def test_a_skip_of_a_case_with_a_baseline_is_noted_with_its_status_and_reason(gated, findings):
    refused = Support(status=Status.NEEDS_CUDA, reason="no CUDA")
    verdict = gated.receive(skip_message(findings.case, refused, 4.125).dump(), None)
    assert "is skipped but has a baseline: needs-cuda: no CUDA" in verdict.text
    assert gated.results.gated == {findings.case.case_id: verdict.text}


def test_without_a_baseline_folder_nothing_is_judged(session, scored, findings):
    assert judged(session, scored({"a": 4.8}), grup=0.3) == PASSED
    refused = Support(status=Status.NEEDS_CUDA, reason="no CUDA")
    assert session.receive(skip_message(findings.case, refused, 4.125).dump(), None) == PASSED


def test_a_baseline_folder_that_cannot_be_updated_is_found_before_the_first_case(tmp_path):
    (tmp_path / "taken").write_text("a file")
    session = open_session(
        tmp_path,
        report_dir=str(tmp_path / "out"),
        baseline=str(tmp_path / "taken"),
        update_baseline=True,
    )
    with pytest.raises(WriteError, match="taken: cannot be written"):
        session.check_folders()


def test_an_empty_baseline_folder_is_found_before_the_first_case(tmp_path):
    session = open_session(
        tmp_path, report_dir=str(tmp_path / "out"), baseline=str(tmp_path / "away")
    )
    with pytest.raises(RecordError, match="the folder has no manifest"):
        session.check_folders()


def test_reports_are_not_compared_with_themselves(tmp_path):
    same = str(tmp_path / "out")
    session = open_session(tmp_path, report_dir=same, baseline=same)
    with pytest.raises(RecordError, match="every case would be compared with itself"):
        session.check_folders()


def test_until_it_ends_a_session_names_every_case_as_lost(tmp_path):
    session = open_session(tmp_path, report_dir=str(tmp_path / "out"), shard="1/2")
    chosen = session.cases[:2]
    session.expect(chosen)
    summary = read_summary(tmp_path / "out" / "summary.json")
    assert (summary.lost, summary.shard) == (tuple(sorted(c.case_id for c in chosen)), "1/2")


def test_a_blessed_case_that_a_marker_skips_fails_and_any_other_may_be_skipped(tmp_path, manifest):
    blessed = tmp_path / "blessed"
    write_case(blessed, manifest)
    session = open_session(tmp_path, report_dir=str(tmp_path / "out"), baseline=str(blessed))
    case = session.cases[0]
    known = replace(case, model="toy", combination=combination_of(session, manifest), size="small")
    assert known.case_id == manifest.case.case_id
    session.expect([case, known])
    assert session.settle(case, is_skipped=True).outcome == "passed"
    assert session.settle(known, is_skipped=False).outcome == "passed"
    assert session.settle(known, is_skipped=True).outcome == "failed"
    session.finish()
    assert session.results.lost == ()


def combination_of(session, manifest):
    wanted = f"{manifest.case.pair}-{manifest.case.granularity}"
    (found,) = (c for c in session.combinations if c.test_id == wanted)
    return found


# Schemes


EXPORTED = ExportRecord(
    bytes_before=1024,
    bytes_after=512,
    num_quantized=1,
    largest_error=0.0,
    num_identical=3,
    violations=(),
    load="not tried",
    load_text="vLLM is not installed here",
)
TWO_SCHEMES = ("fp8_autoquant_full", "fp8_autoquant_top25")


def test_schemes_are_the_ones_asked_for_on_the_largest_selected_size(tmp_path):
    session = open_session(tmp_path, schemes=",".join(TWO_SCHEMES), sizes="small,medium")
    assert [case.case_id for case in session.schemes] == [
        f"tiny-qwen3-vl/schemes/{name}/medium" for name in TWO_SCHEMES
    ]
    assert list(session.schemes_by_id) == list(TWO_SCHEMES)
    assert all(session.takes_scheme(case) for case in session.schemes)


def test_all_schemes_are_asked_for_with_one_word(tmp_path):
    session = open_session(tmp_path, schemes="all")
    assert [case.test_id for case in session.schemes] == list(builtin_schemes())
    assert all(session.takes_scheme(case) for case in session.schemes)


def test_without_schemes_asked_for_none_is_taken_and_none_can_be_derived(session):
    assert len(session.schemes) == len(builtin_schemes())
    assert not any(session.takes_scheme(case) for case in session.schemes)
    with pytest.raises(UsageError, match="no scheme was asked for; give --aq-schemes"):
        session.deriver(None)


def test_an_unknown_scheme_beside_all_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'fp8_autoquant_ful'"):
        open_session(tmp_path, schemes="all,fp8_autoquant_ful")


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_scheme_runs_in_exactly_one_shard(tmp_path, count):
    sessions = [
        open_session(tmp_path, schemes="all", shard=f"{i}/{count}") for i in range(1, count + 1)
    ]
    takers = [sum(s.takes_scheme(case) for s in sessions) for case in sessions[0].schemes]
    assert takers == [1] * len(builtin_schemes())


def test_the_pairs_of_the_grid_do_not_limit_the_schemes(tmp_path):
    session = open_session(tmp_path, schemes="all", pairs="wint8_aint8", granularities="w_group64")
    assert [c.test_id for c in session.schemes[0].candidates] == ["wfp8_afp8-default"]


def test_held_out_captions_are_read_before_anything_runs_where_schemes_are(tmp_path):
    missing = str(tmp_path / "away.txt")
    with pytest.raises(CaptionError, match=r"away.txt: does not exist"):
        open_session(tmp_path, schemes="all", held_out=missing)


def test_a_derived_scheme_is_written_and_in_the_results(session, derived):
    session.expect(session.cases[:1])
    assert session.receive(scheme_message(derived).dump(), None) == PASSED
    assert load_scheme((session.root / derived.path).read_bytes(), source="x") == derived
    assert session.results.schemes == {derived.case_id: derived}


def test_a_scheme_that_was_expected_and_sent_nothing_is_lost(tmp_path):
    session = open_session(tmp_path, report_dir=str(tmp_path / "out"), schemes="all")
    first, second = session.schemes[:2]
    session.expect([first, second])
    session.settle(first, is_skipped=True)
    session.finish()
    assert session.results.lost == (second.case_id,)


def test_a_scheme_that_its_worker_wrote_is_not_written_again(session, derived):
    path = session.root / derived.path
    write_atomic(path, dump_scheme(derived))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    session.receive(scheme_message(derived).dump(), None)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_scheme_without_an_export_leaves_the_manifest_of_an_earlier_export(session, derived):
    earlier = replace(derived, export=EXPORTED)
    write_atomic(session.root / derived.path, dump_scheme(earlier))
    write_atomic(session.root / derived.path.with_name("model.safetensors"), b"x")
    other = replace(derived, allocation=replace(derived.allocation, score=9.0))
    session.receive(scheme_message(other).dump(), None)
    assert load_scheme((session.root / derived.path).read_bytes(), source="x") == earlier


def test_a_broken_manifest_in_the_place_of_a_schemes_is_replaced(session, derived):
    write_atomic(session.root / derived.path, b"\xff\xfe")
    session.receive(scheme_message(derived).dump(), None)
    assert load_scheme((session.root / derived.path).read_bytes(), source="x") == derived


def test_a_scheme_that_cannot_be_written_fails_and_is_remembered(tmp_path, derived):
    (tmp_path / "taken").write_text("a file")
    session = open_session(tmp_path, report_dir=str(tmp_path / "taken"))
    verdict = session.receive(scheme_message(derived).dump(), None)
    assert verdict.outcome == "failed"
    assert "cannot be written" in verdict.text
    assert session.results.write_errors == [verdict.text]
