"""A report folder after several runs: later runs hide and lose nothing of earlier ones."""

import json
from dataclasses import replace

import pytest
from builders import files_in, results_of, structure_check, with_case_names
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records import outcome_log
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.scheme_manifest import dump_scheme
from pytest_autoquant.reports import found_cases
from pytest_autoquant.reports.folder import read_folder
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import (
    draw_layer_maps,
    write_case,
    write_expected,
    write_summary,
)

MEASURED, OTHER = (
    "toy/wint4_aint8/default/small/gradient",
    "toy/wint4_aint8/w_group64/small/gradient",
)
SKIP = SkippedCase(case_id="toy/wfp4_afp8/default/small/gradient", status="needs-cuda", reason="r")
CHECK = structure_check()
SKIPPED = replace(SKIP, case_id=MEASURED)
ERROR = FailedCase(case_id=MEASURED, problem="out of memory")


@pytest.fixture
def case(manifest):
    """Return the manifest of the measured case with another overlay in its name."""
    return lambda case_id: with_case_names(manifest, granularity=case_id.split("/")[2])


@pytest.fixture
def run(tmp_path, case):
    """Run a session into the folder: measured case ids, other outcomes, session attributes."""

    def session(*outcomes, schemes=(), **attributes):
        measured = [outcome for outcome in outcomes if isinstance(outcome, str)]
        for case_id in measured:
            write_case(tmp_path, case(case_id))
        lines = [case_result_of(case(o)) if o in measured else o for o in outcomes]
        results = results_of(*lines, **attributes)
        draw_layer_maps(tmp_path, (case_result_of(case(case_id)) for case_id in measured))
        for scheme in schemes:
            write_atomic(tmp_path / scheme.path, dump_scheme(scheme))
            results.schemes[scheme.case_id] = scheme
        write_summary(tmp_path, results)

    return session


def summary(root):
    return json.loads((root / "summary.json").read_text(), parse_constant=pytest.fail)


def states(results):
    """Return the ids of the measured cases, the skips and the errors."""
    return set(results.cases), set(results.skips), set(results.errors)


def test_scheme_run_after_sweep_keeps_every_outcome_of_the_sweep(tmp_path, run, derived):
    run(MEASURED, SKIP, CHECK, FailedCase(case_id=OTHER, problem="x"), command="pytest sweep")
    run(schemes=[derived], command="pytest schemes")
    for results in (read_folder(tmp_path), rebuild(tmp_path)):
        assert states(results) == ({MEASURED}, {SKIP.case_id}, {OTHER})
        assert list(results.structures.values()) == [CHECK]
        assert list(results.schemes) == [derived.case_id]
    document = summary(tmp_path)
    counts = {name: document["counts"][name] for name in ("measured", "skipped", "failed")}
    assert counts == {"measured": 1, "skipped": 1, "failed": 1}
    assert document["command"] == "pytest schemes"
    last = document["last_run"]
    assert (last["cases"], last["structure"]) == ([derived.case_id], [])
    assert (last["counts"]["schemes"], last["counts"]["measured"]) == (1, 0)
    expected = "Last run: 1 scheme derived; all other outcomes here are from earlier runs."
    assert expected in (tmp_path / "summary.md").read_text()
    assert expected in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([[MEASURED], [SKIPPED]], ({MEASURED}, set(), set())),
        ([[MEASURED], [ERROR]], ({MEASURED}, set(), {MEASURED})),
        ([[MEASURED], [ERROR], [MEASURED]], ({MEASURED}, set(), set())),
        ([[ERROR], [SKIPPED]], (set(), {MEASURED}, set())),
        ([[MEASURED], [OTHER]], ({MEASURED, OTHER}, set(), set())),
    ],
)
def test_state_of_a_case_after_several_runs(tmp_path, run, runs, expected):
    for outcomes in runs:
        run(*outcomes)
    assert states(read_folder(tmp_path)) == expected
    assert states(rebuild(tmp_path)) == expected


def test_later_error_is_shown_beside_the_measured_scores(tmp_path, run):
    run(MEASURED)
    run(ERROR)
    document, text = summary(tmp_path), (tmp_path / "summary.md").read_text()
    assert document["counts"]["measured"] == document["counts"]["failed"] == 1
    assert [case["total_score"] for case in document["cases"]] == [10.0]
    shown = "out of memory (the scores shown were measured before it failed)"
    assert shown in text.replace("\\", "")
    assert "then failed: out of memory" in (tmp_path / "index.html").read_text()


def test_rows_are_marked_only_if_there_was_more_than_one_run(tmp_path, run, render):
    run(MEASURED, SKIP)
    text = (tmp_path / "summary.md").read_text()
    assert "Last run: 1 measured, 1 skipped; every outcome here is from it." in text
    assert "run" not in render(text).tables[1][0]
    run(OTHER)
    (cases,) = [
        table
        for table in render((tmp_path / "summary.md").read_text()).tables
        if "granularity" in table[0]
    ]
    assert [(row[1], row[-1]) for row in cases] == [
        ("granularity", "run"),
        ("default", "earlier"),
        ("w_group64", "last"),
    ]


def test_lost_cases_are_those_of_the_last_run(tmp_path, run):
    run(MEASURED, lost=("toy/gone/default/small/gradient",))
    run(lost=(MEASURED,))
    assert read_folder(tmp_path).lost == (MEASURED,)
    assert set(read_folder(tmp_path).cases) == {MEASURED}
    run(OTHER)
    assert read_folder(tmp_path).lost == ()


def test_gate_verdicts_of_cases_that_the_last_run_left_alone_are_kept(tmp_path, run):
    run(MEASURED, OTHER, gated={MEASURED: "drifted", OTHER: "drifted"})
    run(OTHER)
    assert read_folder(tmp_path).gated == {MEASURED: "drifted"}


def test_rebuilding_changes_no_file(tmp_path, run, derived):
    run(MEASURED, SKIP, CHECK, kept={MEASURED}, reruns={MEASURED: "torch"}, gated={MEASURED: "g"})
    run(ERROR, schemes=[derived], command="pytest", shard="1/2", lost=("toy/a/b/small/gradient",))
    before = files_in(tmp_path)
    rebuild(tmp_path)
    assert files_in(tmp_path) == before


def test_manifests_of_the_session_are_not_read_again(tmp_path, run, monkeypatch):
    run(MEASURED)
    read = []
    original = found_cases.read_any

    def counting(path, root):
        read.append(path.relative_to(root).parts[2])
        return original(path, root)

    monkeypatch.setattr(found_cases, "read_any", counting)
    run(OTHER)
    assert read == ["default"]


def test_killed_session_loses_only_what_sent_no_outcome(tmp_path, run, case):
    run(MEASURED, SKIP)
    expected = (MEASURED, OTHER, "toy/a/b/small/gradient", "toy/c/d/small/gradient")
    write_expected(tmp_path, SessionResults(lost=expected, shard="1/2"))
    assert len(summary(tmp_path)["cases"]) == 1
    assert summary(tmp_path)["last_run"]["is_finished"] is False
    write_case(tmp_path, case(OTHER))
    outcome_log.append(tmp_path, FailedCase(case_id="toy/a/b/small/gradient", problem="x"))
    results = read_folder(tmp_path)
    assert results.lost == ("toy/c/d/small/gradient",)
    assert states(results) == ({MEASURED, OTHER}, {SKIP.case_id}, {"toy/a/b/small/gradient"})


def test_folder_without_a_log_is_read_from_its_summary(tmp_path, run):
    run(MEASURED)
    assert not (tmp_path / outcome_log.OUTCOME_LOG).exists()
    run(SKIP, CHECK)
    (tmp_path / outcome_log.OUTCOME_LOG).unlink()
    run(OTHER)
    results = read_folder(tmp_path)
    assert states(results) == ({MEASURED, OTHER}, {SKIP.case_id}, set())
    assert list(results.structures.values()) == [CHECK]


def test_unreadable_manifest_of_an_earlier_run_is_named(tmp_path, run, case):
    run(MEASURED)
    (tmp_path / case(MEASURED).path).write_text("{")
    run(OTHER)
    (reason,) = summary(tmp_path)["left_out"]
    assert reason.startswith(f"{case(MEASURED).path.as_posix()}: is not JSON")
