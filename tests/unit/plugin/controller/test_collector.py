"""What the controller does with the ends of tests: write, judge, bless, count and sum up."""

import json
import sys
from dataclasses import replace

import pytest
from builders import changed, files_in, run_plan, structure_check, with_case_names
from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.layout import state_path
from pytest_autoquant.manifests.records.outcome_log import OUTCOME_LOG, read
from pytest_autoquant.manifests.records.outcomes import FailedCase, KeptCase, SkippedCase
from pytest_autoquant.manifests.records.scheme_manifest import (
    ExportRecord,
    dump_scheme,
    load_scheme,
)
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, read_manifest
from pytest_autoquant.manifests.records.session_summary import read_summary
from pytest_autoquant.manifests.selection import with_budget
from pytest_autoquant.plugin.controller.collector import Collector, TestEnd
from pytest_autoquant.plugin.messages.collected import CollectedCases
from pytest_autoquant.plugin.messages.outcome import (
    Checked,
    DerivedScheme,
    Failed,
    Kept,
    MeasuredCase,
    Refused,
    Skipped,
    WorkerReport,
    dump_report,
)
from pytest_autoquant.regression.baselines import PASSED, Outcome
from pytest_autoquant.reports.write import write_case

CASE = "tiny-qwen3-vl/wint4_aint8/a_per_token_dynamic/small/gradient"
CHECK = structure_check()
SKIP = SkippedCase(case_id=CASE, status="needs-cuda", reason="no CUDA", effective_bits=4.125)
FIRST, SECOND = "a.py::test_one[case]", "a.py::test_two[case]"


def end(*outcomes, nodeid=FIRST, tolerances=None, **values):
    """A test that reported these outcomes; none stands for a silent worker."""
    report = WorkerReport(outcomes=outcomes, tolerances=tolerances)
    text = dump_report(report) if outcomes else None
    return TestEnd(nodeid=nodeid, outcomes=text, **values)


def measured(manifest, **values):
    """The outcome of a measured case."""
    return MeasuredCase(manifest=dump_manifest(manifest), **values)


def collector_of(folder, *, nodeids=(FIRST,), case_id=CASE, **options):
    """A collector that expects the case from these tests, reporting to ``folder/out``."""
    collector = Collector(run_plan(folder, **{"report_dir": str(folder / "out")} | options))
    cases = dict.fromkeys(nodeids, case_id)
    collector.expect(CollectedCases(cases=cases, num_selected=len(cases)))
    return collector


@pytest.fixture
def manifest(manifest):
    """The small model's manifest as one of the default model's case."""
    return of_default_model(manifest)


def of_default_model(manifest):
    named = changed(manifest, "case", case_id=CASE)
    return changed(named, "model", name="tiny-qwen3-vl")


@pytest.fixture
def scored(scored):
    """Build a manifest of ``CASE`` from scores per token by group."""
    return lambda **scores: of_default_model(scored(scores))


# Outcomes


def test_measured_case_is_on_disk_when_it_has_been_taken(tmp_path, manifest):
    collector = collector_of(tmp_path)
    assert collector.take(end(measured(manifest), state=b"state")) == PASSED
    path = tmp_path / "out" / manifest.path
    assert read_manifest(path) == manifest
    assert (path.parent / "layer-sensitivity-report.md").is_file()
    assert path.with_name("wint4_aint8_autoquant_lm_autoquant_state.pt").read_bytes() == b"state"
    assert list(collector.results.cases) == [CASE]
    assert collector.results.written == {CASE}
    assert not (tmp_path / "out" / OUTCOME_LOG).exists()


def test_manifest_is_on_disk_as_it_arrived(tmp_path, manifest):
    arrived = MeasuredCase(manifest=dump_manifest(manifest).replace("\n", "\n\n"))
    collector_of(tmp_path).take(end(arrived))
    assert (tmp_path / "out" / manifest.path).read_text() == arrived.manifest


def test_outcomes_without_a_manifest_are_in_the_log_when_they_have_been_taken(tmp_path):
    collector = collector_of(tmp_path)
    failed = FailedCase(case_id="m/other", problem="out of memory")
    assert collector.take(end(Skipped(case=SKIP), Failed(case=failed), Checked(check=CHECK))) == (
        PASSED
    )
    assert read(tmp_path / "out") == (SKIP, failed, CHECK)
    assert collector.results.skips == {CASE: SKIP}
    assert collector.results.errors == {"m/other": failed}
    assert collector.results.structures == {("wfp8_afp8", "default"): CHECK}


def test_results_of_another_model_of_the_name_are_refused_and_change_nothing(
    tmp_path, manifest, derived
):
    write_case(tmp_path / "out", manifest)
    write_atomic(tmp_path / "out" / derived.path, dump_scheme(derived))
    collector, written = collector_of(tmp_path), files_in(tmp_path / "out")
    del written["summary.json"]
    other_case = with_case_names(manifest, size="large")
    for outcome in (
        measured(changed(manifest, "model", digest="e" * 64)),
        measured(changed(other_case, "model", digest="e" * 64)),
        scheme(changed(derived, "model", digest="e" * 64)),
    ):
        verdict = collector.take(end(outcome))
        assert verdict.outcome is Outcome.FAILED
        assert f"has digest {'d' * 16}, this model has {'e' * 16}; " in verdict.text
    assert written.items() <= files_in(tmp_path / "out").items()
    assert files_in(tmp_path / "out").keys() - written == {"summary.json"}
    assert collector.results.written == set()
    assert collector.take(end(measured(other_case))) == PASSED


def test_refused_case_fails_and_is_no_outcome_of_the_case(tmp_path):
    collector = collector_of(tmp_path, nodeids=(FIRST, SECOND))
    for nodeid in (FIRST, SECOND):
        verdict = collector.take(end(Refused(problem="taken"), nodeid=nodeid, failure="taken"))
        assert (verdict.outcome, verdict.text) == (Outcome.FAILED, "taken")
    assert (collector.results.write_errors, collector.results.errors) == (["taken"], {})
    assert not (tmp_path / "out" / OUTCOME_LOG).exists()
    assert collector.lost == ()


def test_two_models_of_one_run_cannot_have_one_name(tmp_path, manifest):
    """Workers on several hosts see different folders."""
    collector = collector_of(tmp_path)
    assert collector.take(end(measured(manifest))) == PASSED
    second = changed(with_case_names(manifest, size="large"), "model", digest="e" * 64)
    assert collector.take(end(measured(second))).outcome is Outcome.FAILED


def test_first_result_of_two_tests_of_one_case_stays(tmp_path, scored):
    collector = collector_of(tmp_path, nodeids=(FIRST, SECOND))
    first = scored(a=4.0)
    collector.take(end(measured(first)))
    collector.take(end(measured(scored(a=5.0)), nodeid=SECOND))
    assert read_manifest(tmp_path / "out" / first.path) == first
    assert [case.total_score for case in collector.results.cases.values()] == [4.0]


def test_case_that_fails_after_it_was_measured_is_written_and_failed(tmp_path, manifest):
    collector = collector_of(tmp_path)
    assert collector.take(end(measured(manifest), failure="assert 0.2 < 0.1")) == PASSED
    failed = FailedCase(case_id=CASE, problem="assert 0.2 < 0.1")
    assert read_manifest(tmp_path / "out" / manifest.path) == manifest
    assert collector.results.errors == {CASE: failed}
    assert read(tmp_path / "out") == (failed,)


def test_case_that_one_of_two_tests_failed_stays_failed(tmp_path, manifest):
    collector = collector_of(tmp_path, nodeids=(FIRST, SECOND))
    collector.take(end(failure="assert False"))
    collector.take(end(measured(manifest), nodeid=SECOND))
    failed = FailedCase(case_id=CASE, problem="assert False")
    assert collector.results.errors == {CASE: failed}
    assert read(tmp_path / "out") == (failed,)


def test_worker_that_names_the_problem_is_believed_and_logged_once(tmp_path):
    collector = collector_of(tmp_path)
    failed = FailedCase(case_id=CASE, problem="out of memory")
    collector.take(end(Failed(case=failed), failure="Failed: out of ..."))
    assert collector.results.errors == {CASE: failed}
    assert (tmp_path / "out" / OUTCOME_LOG).read_text().count("\n") == 1


def test_silent_case_is_skipped_failed_or_neither(tmp_path):
    collector = collector_of(tmp_path)
    collector.take(end())
    assert collector.results.is_empty
    collector.take(end(skip_reason="by a marker"))
    skipped = SkippedCase(case_id=CASE, status="skipped", reason="by a marker")
    assert collector.results.skips == {CASE: skipped}
    collector.take(end(failure="worker 'gw0' crashed"))
    failed = FailedCase(case_id=CASE, problem="worker 'gw0' crashed")
    assert collector.results.errors == {CASE: failed}
    assert read(tmp_path / "out") == (failed,)


def test_silent_test_that_is_no_case_leaves_nothing(tmp_path):
    collector = collector_of(tmp_path)
    collector.take(end(nodeid="a.py::test_other", failure="assert False"))
    collector.take(end(nodeid="a.py::test_other", skip_reason="by a marker"))
    assert collector.results.is_empty


def test_reason_for_measuring_again_is_remembered(tmp_path, manifest):
    collector = collector_of(tmp_path)
    collector.take(end(measured(manifest, rerun="torch 2.10 -> 2.11")))
    assert collector.results.reruns == {CASE: "torch 2.10 -> 2.11"}


def test_report_of_another_version_fails_its_case(tmp_path):
    collector = collector_of(tmp_path)
    verdict = collector.take(TestEnd(nodeid=FIRST, outcomes="{}"))
    assert verdict.outcome is Outcome.FAILED
    assert "another version of pytest-autoquant" in verdict.text
    assert collector.results.write_errors == [verdict.text]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "cannot read x.txt or y"),
        ({"record_host": True}, "cannot read {root}/x.txt or /home/someone/y"),
    ],
)
def test_log_names_no_folder_unless_the_host_is_recorded(tmp_path, options, problem):
    collector = collector_of(tmp_path, **options)
    root = tmp_path / "out"
    text = f"cannot read {root}/x.txt or /home/someone/y"
    collector.take(end(failure=text))
    collector.take(end(Skipped(case=replace(SKIP, case_id="m/other", reason=text))))
    failed, skipped = read(root)
    assert (failed.problem, skipped.reason) == (problem.format(root=root),) * 2


# Kept cases


def test_kept_case_is_in_the_results_as_it_was_measured(tmp_path, manifest):
    write_case(tmp_path / "out", manifest)
    collector = collector_of(tmp_path)
    assert collector.take(end(Kept(case=KeptCase(case_id=CASE)), skip_reason="kept")) == PASSED
    assert [case.total_score for case in collector.results.cases.values()] == [10.0]
    assert (collector.results.kept, collector.results.written) == ({CASE}, set())
    assert not (tmp_path / "out" / OUTCOME_LOG).exists()


def test_kept_case_is_selected_anew_under_another_budget(tmp_path, manifest):
    path = write_case(tmp_path / "out", manifest, b"state")
    collector = collector_of(tmp_path, effective_bits="6")
    assert collector.take(end(Kept(case=KeptCase(case_id=CASE)), skip_reason="kept")) == PASSED
    assert read_manifest(path) == with_budget(manifest, 6.0) != manifest
    assert state_path(path).read_bytes() == b"state"
    report = json.loads((path.parent / "layer-sensitivity-report.json").read_text())
    assert report["autoquant_state"]["constraints"]["effective_bits"] == 6
    assert [case.selection.budget for case in collector.results.cases.values()] == [6.0]
    assert collector.results.selected_anew == {CASE: "bit budget 8 -> 6"}
    assert (collector.results.kept, collector.results.written) == ({CASE}, set())


def test_kept_case_without_a_manifest_fails(tmp_path):
    collector = collector_of(tmp_path)
    verdict = collector.take(end(Kept(case=KeptCase(case_id=CASE)), skip_reason="kept"))
    said = f"{CASE}: its manifest was removed while the run was resumed; run it again"
    assert (verdict.outcome, verdict.text) == (Outcome.FAILED, said)


def test_kept_case_is_compared_with_its_baseline(tmp_path, scored):
    write_case(tmp_path / "out", scored(a=4.8))
    write_case(tmp_path / "blessed", scored(a=4.0))
    collector = collector_of(tmp_path, baseline=str(tmp_path / "blessed"))
    verdict = collector.take(end(Kept(case=KeptCase(case_id=CASE)), skip_reason="kept"))
    assert verdict.outcome is Outcome.FAILED
    assert "drifted from its baseline" in verdict.text


# Folders that cannot be written


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"report_dir": "taken"}, "--aq-report-dir"),
        ({"tape_dir": "taken"}, "--aq-tape-dir"),
        ({"device_map": "auto", "offload_dir": "taken"}, "--aq-offload-dir"),
        ({"baseline": "taken", "update_baseline": True}, "taken: cannot be written"),
    ],
)
def test_unwritable_folder_is_found_before_the_first_case(tmp_path, monkeypatch, options, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    collector = Collector(run_plan(tmp_path, **options))
    with pytest.raises(WriteError, match=part):
        collector.check_folders()


def test_empty_baseline_folder_is_found_before_the_first_case(tmp_path):
    with pytest.raises(RecordError, match="the folder has no manifest"):
        Collector(run_plan(tmp_path, baseline=str(tmp_path / "away")))


def test_case_that_cannot_be_written_fails_and_is_in_the_results(tmp_path, manifest):
    collector = collector_of(tmp_path)
    root = tmp_path / "out"
    (root / manifest.path.parts[0]).write_text("a file")
    verdict = collector.take(end(measured(manifest)))
    assert verdict.outcome is Outcome.FAILED
    assert verdict.text.startswith(str(root / manifest.path.parent))
    assert "cannot be written" in verdict.text
    assert collector.results.write_errors == [verdict.text]
    assert list(collector.results.cases) == [CASE]
    assert collector.results.written == set()


# Lost cases and the summary


def test_summary_names_every_case_as_lost_until_the_run_ends(tmp_path):
    collector_of(tmp_path, shard="1/2")
    summary = read_summary(tmp_path / "out" / "summary.json")
    assert (summary.lost, summary.shard) == ((CASE,), "1/2")


def test_case_of_which_one_test_sent_nothing_is_lost(tmp_path, manifest):
    collector = collector_of(tmp_path, nodeids=(FIRST, SECOND))
    assert collector.lost == (CASE,)
    collector.take(end(measured(manifest)))
    assert collector.lost == (CASE,)
    collector.take(end(nodeid=SECOND))
    assert collector.lost == ()


def test_case_is_lost_when_writing_it_is_interrupted(tmp_path, manifest, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    collector = collector_of(tmp_path)
    monkeypatch.setattr("pytest_autoquant.reports.write.write_layer_reports", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collector.take(end(measured(manifest)))
    collector.finish()
    assert (collector.results.lost, dict(collector.results.cases)) == ((CASE,), {})


def test_lost_scheme_is_named_at_the_end(tmp_path, manifest):
    collector = Collector(run_plan(tmp_path, report_dir=str(tmp_path / "out")))
    schemes = {"a.py::test_scheme[mine]": "m/schemes/mine/small"}
    collector.expect(CollectedCases(cases={FIRST: CASE}, schemes=schemes, num_selected=2))
    collector.take(end(measured(manifest)))
    assert len(collector.finish()) >= 3
    assert collector.results.lost == ("m/schemes/mine/small",)
    assert read_summary(tmp_path / "out" / "summary.json").lost == ("m/schemes/mine/small",)


def test_summary_is_written_at_the_end(tmp_path, manifest):
    collector = collector_of(tmp_path)
    collector.take(end(measured(manifest)))
    written = collector.finish(["--aq-pairs=wint4_aint8", "/home/someone/cases"])
    names = ("index.html", "summary.md", "summary.json")
    assert {tmp_path / "out" / name for name in names} <= {*written}
    assert all(path.is_file() for path in written)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["counts"]["measured"], summary["lost"]) == (1, [])
    assert collector.results.command == "pytest --aq-pairs=wint4_aint8 cases"


def test_run_without_cases_writes_nothing(tmp_path):
    collector = Collector(run_plan(tmp_path))
    assert collector.finish() == ()
    assert not collector.has_cases
    assert list(tmp_path.iterdir()) == []


def test_shard_without_cases_writes_its_summary(tmp_path):
    collector = Collector(run_plan(tmp_path, shard="2/2"))
    assert collector.finish() == ()  # no shard has a case
    collector.expect(CollectedCases(num_selected=1))
    assert collector.finish() != ()
    assert read_summary(tmp_path / "reports" / "tmp" / "summary.json").shard == "2/2"


def test_summary_that_cannot_be_written_is_remembered(tmp_path):
    (tmp_path / "out").write_text("a file")
    collector = Collector(run_plan(tmp_path, report_dir=str(tmp_path / "out"), shard="1/2"))
    collector.expect(CollectedCases(num_selected=1))
    assert collector.finish() == ()
    (error,) = collector.results.write_errors
    assert "cannot be written" in error


def test_pictures_that_cannot_be_drawn_lose_no_record(tmp_path, manifest, monkeypatch):
    collector = collector_of(tmp_path)
    collector.take(end(measured(manifest)))
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert collector.finish() == ()
    assert read_manifest(tmp_path / "out" / manifest.path) == manifest
    assert read_summary(tmp_path / "out" / "summary.json").counts.measured == 1
    assert {error.partition(":")[0] for error in collector.results.write_errors} == {
        "charts cannot be drawn"
    }
    assert "aq-harness render" in collector.results.write_errors[0]


# The gate


@pytest.fixture
def gated(tmp_path, scored):
    """A gated collector whose baseline has one group at 4.0, which may drift by a tenth."""
    write_case(tmp_path / "blessed", scored(a=4.0))
    return collector_of(
        tmp_path,
        nodeids=(FIRST, SECOND),
        baseline=str(tmp_path / "blessed"),
        tol_total="0.1",
        tol_group="0.1",
    )


@pytest.mark.parametrize(
    ("score", "tolerances", "part"),
    [
        (4.2, None, None),
        (4.8, None, "drifted from its baseline"),
        (4.8, {"total": 0.3, "group": 0.3}, None),
        (4.0, {"grup": 0.3}, "grup"),
    ],
)
def test_gate_judges_by_the_tolerances_of_the_run_and_of_the_case(
    gated, scored, score, tolerances, part
):
    verdict = gated.take(end(measured(scored(a=score)), tolerances=tolerances))
    gated.finish()
    assert gated.gate.num_judged == 1
    if part is None:
        assert (verdict, gated.results.gated) == (PASSED, {})
    else:
        assert verdict.outcome is Outcome.FAILED
        assert part in verdict.text
        assert gated.results.gated == {CASE: verdict.text}


def test_drifted_case_is_written_all_the_same(tmp_path, gated, scored):
    drifted = scored(a=4.8)
    gated.take(end(measured(drifted)))
    assert read_manifest(tmp_path / "out" / drifted.path) == drifted


def test_case_that_drifted_in_one_of_two_tests_stays_gated(gated, scored):
    failed = gated.take(end(measured(scored(a=4.8))))
    wide = {"total": 0.3, "group": 0.3}
    assert gated.take(end(measured(scored(a=4.8)), nodeid=SECOND, tolerances=wide)) == PASSED
    gated.finish()
    assert gated.results.gated == {CASE: failed.text}


def test_failed_test_is_not_compared(gated, scored):
    assert gated.take(end(measured(scored(a=4.8)), failure="assert False")) == PASSED
    assert gated.compared_nothing


@pytest.mark.parametrize("outcomes", [(), (Skipped(case=SKIP),)])
def test_skip_of_a_case_with_a_baseline_fails(gated, outcomes):
    verdict = gated.take(end(*outcomes, skip_reason="no CUDA"))
    assert verdict.outcome is Outcome.FAILED
    assert "is skipped but has a baseline" in verdict.text
    assert "no CUDA" in verdict.text


def test_worst_verdict_of_several_cases_of_one_test_counts(tmp_path, scored):
    write_case(tmp_path / "blessed", scored(a=4.0))
    collector = collector_of(tmp_path, baseline=str(tmp_path / "blessed"), baseline_missing="skip")
    other = changed(scored(a=4.0), "case", case_id="tiny-qwen3-vl/other")
    new, drifted = measured(other), measured(scored(a=4.8))
    assert collector.take(end(new, nodeid="a.py::own")).outcome is Outcome.SKIPPED
    assert collector.take(end(new, drifted, nodeid="a.py::own")).outcome is Outcome.FAILED
    assert collector.take(end(drifted, new, nodeid="a.py::own")).outcome is Outcome.FAILED


@pytest.mark.parametrize("outcomes", [(), (Failed(case=FailedCase(case_id=CASE, problem="x")),)])
def test_gate_that_compares_no_case_is_noticed(gated, outcomes):
    gated.take(end(*outcomes))
    assert gated.compared_nothing


def test_without_a_gate_nothing_is_judged(tmp_path, scored):
    collector = collector_of(tmp_path)
    assert collector.take(end(measured(scored(a=4.8)), tolerances={"grup": 1})) == PASSED
    assert collector.take(end(Skipped(case=SKIP), skip_reason="no CUDA")) == PASSED
    assert not collector.compared_nothing


# Blessing


@pytest.fixture
def blessing(tmp_path):
    """A collector that makes what passes the new baselines."""
    return collector_of(
        tmp_path,
        nodeids=(FIRST, SECOND),
        baseline=str(tmp_path / "blessed"),
        update_baseline=True,
    )


@pytest.fixture
def blessed(tmp_path, manifest):
    """Whether the case has a baseline."""
    return (tmp_path / "blessed" / manifest.path).is_file


def test_case_is_blessed_when_every_test_of_it_has_passed(blessing, blessed, manifest):
    assert blessing.take(end(measured(manifest))) == PASSED
    assert not blessed()
    assert blessing.compared_nothing
    assert blessing.take(end(measured(manifest), nodeid=SECOND)) == PASSED
    assert blessed()
    assert not blessing.compared_nothing


@pytest.mark.parametrize("failing", [FIRST, SECOND])
def test_case_is_not_blessed_when_a_test_of_it_failed(blessing, blessed, manifest, failing):
    for nodeid in (FIRST, SECOND):
        failure = "assert False" if nodeid == failing else None
        blessing.take(end(measured(manifest), nodeid=nodeid, failure=failure))
    assert not blessed()
    assert blessing.compared_nothing


def test_case_is_not_blessed_when_a_test_of_it_is_lost(blessing, blessed, manifest):
    blessing.take(end(measured(manifest)))
    blessing.finish()
    assert not blessed()


def test_case_that_is_measured_by_name_is_blessed_with_its_test(blessing, blessed, manifest):
    blessing.take(end(measured(manifest), nodeid="a.py::own", failure="assert False"))
    assert not blessed()
    blessing.take(end(measured(manifest), nodeid="a.py::own"))
    assert blessed()


def test_baseline_that_cannot_be_written_fails_the_case(tmp_path, blessing, manifest):
    (tmp_path / "blessed").write_text("a file")
    blessing.take(end(nodeid=SECOND))
    verdict = blessing.take(end(measured(manifest)))
    assert verdict.outcome is Outcome.FAILED
    assert "cannot be written" in verdict.text


# Schemes


def scheme(manifest):
    """The outcome of a derived scheme."""
    return DerivedScheme(manifest=dump_scheme(manifest))


@pytest.fixture
def exported(derived):
    return replace(
        derived,
        export=ExportRecord(
            bytes_before=1024,
            bytes_after=512,
            num_quantized=1,
            largest_error=0.0,
            num_identical=3,
            violations=(),
            load="not tried",
            load_text="vLLM is not installed here",
        ),
    )


@pytest.mark.parametrize("before", [None, b"\xff\xfe"])
def test_derived_scheme_is_written_also_over_a_corrupt_manifest(tmp_path, derived, before):
    collector = collector_of(tmp_path)
    path = tmp_path / "out" / derived.path
    if before is not None:
        write_atomic(path, before)
    assert collector.take(end(scheme(derived))) == PASSED
    assert load_scheme(path.read_bytes(), source="x") == derived
    assert collector.results.schemes == {derived.case_id: derived}


def test_scheme_that_its_worker_wrote_is_not_written_again(tmp_path, exported):
    collector = collector_of(tmp_path)
    path = tmp_path / "out" / exported.path
    write_atomic(path, dump_scheme(exported))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    collector.take(end(scheme(exported)))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_scheme_without_a_checkpoint_leaves_the_record_of_an_exported_one(
    tmp_path, derived, exported
):
    collector = collector_of(tmp_path)
    path = tmp_path / "out" / derived.path
    write_atomic(path, dump_scheme(exported))
    write_atomic(path.with_name("model.safetensors"), b"x")
    collector.take(end(scheme(changed(derived, "allocation", score=9.0))))
    assert load_scheme(path.read_bytes(), source="x") == exported


def test_scheme_that_cannot_be_written_fails(tmp_path, derived):
    collector = collector_of(tmp_path)
    write_atomic(tmp_path / "out" / derived.path.parts[0], b"a file")
    verdict = collector.take(end(scheme(derived)))
    assert verdict.outcome is Outcome.FAILED
    assert "cannot be written" in verdict.text
    assert collector.results.write_errors == [verdict.text]


def test_timing_holds_the_last_word_of_each_worker(tmp_path):
    collector = collector_of(tmp_path)
    assert list(collector.timing) == ["main"]
    for process, seconds in (("gw1", 1.0), ("gw0", 5.0), ("gw1", 3.0)):
        kept = Checked(check=CHECK)
        report = WorkerReport(outcomes=(kept,), process=process, timing={"sweep": seconds})
        collector.take(TestEnd(nodeid=FIRST, outcomes=dump_report(report)))
    found = collector.timing
    assert list(found) == ["controller", "gw0", "gw1"]
    assert found["gw0"] == {"sweep": 5.0}
    assert found["gw1"] == {"sweep": 3.0}
    assert found["controller"].keys() == {"writing", "other"}
