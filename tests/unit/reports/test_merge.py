"""Joining report folders: one report of several runs, or a reason why not and nothing written."""

import json

import pytest
from builders import changed, files_in, results_of, structure_check
from pytest_autoquant.errors import ModelError, RecordError, WriteError
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records import outcome_log
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
from pytest_autoquant.manifests.selection import with_budget
from pytest_autoquant.reports.merge import merge
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import (
    draw_layer_maps,
    write_case,
    write_expected,
    write_summary,
)

NAMES = ("default", "w_group64", "w_group128", "a_per_token_dynamic")
DEFAULT = "toy/wint4_aint8/default"
RAISED = FailedCase(case_id="toy/raised", problem="out of memory")


def skip(case_id):
    return SkippedCase(case_id=case_id, status="needs-cuda", reason="RuntimeError: no CUDA")


@pytest.fixture
def measured(manifest):
    """The same measurement under four overlays, by overlay."""
    return {
        name: changed(manifest, "case", granularity=name, case_id=f"toy/wint4_aint8/{name}")
        for name in NAMES
    }


@pytest.fixture
def ran(tmp_path, measured):
    """Write what a run leaves: its measured cases, other outcomes and its summary."""

    def run(name, *outcomes, **attributes):
        outcomes = [measured.get(o, o) if isinstance(o, str) else o for o in outcomes]
        manifests = [outcome for outcome in outcomes if isinstance(outcome, Manifest)]
        for manifest in manifests:
            write_case(tmp_path / name, manifest)
        draw_layer_maps(tmp_path / name, map(case_result_of, manifests))
        lines = [case_result_of(o) if isinstance(o, Manifest) else o for o in outcomes]
        write_summary(tmp_path / name, results_of(*lines, **attributes))
        return tmp_path / name

    return run


def refusal(folders, target, **options):
    """Return why the folders are not joined; nothing may have been written."""
    with pytest.raises(RecordError) as caught:
        merge(folders, target, **options)
    assert not target.exists()
    return str(caught.value)


def test_folder_of_another_model_of_the_name_is_no_target(tmp_path, ran, manifest):
    target = tmp_path / "target"
    write_case(target, changed(manifest, "model", digest="e" * 64))
    written = files_in(target)
    with pytest.raises(ModelError, match=f"has digest {'e' * 16}, this model has {'d' * 16}"):
        merge([ran("one", "default")], target)
    assert files_in(target) == written


def test_merged_shards_equal_the_whole_run_byte_for_byte(tmp_path, ran):
    check = structure_check("q", status="needs-cuda")
    gated = {DEFAULT: "drifted"}
    shards = [
        ran("1", "w_group64", "default", skip("toy/1"), check, gated=gated, shard="1/3"),
        ran("2", "a_per_token_dynamic", skip("toy/0"), RAISED, structure_check("o"), shard="2/3"),
        ran("3", "w_group128", shard="3/3"),
    ]
    others = (skip("toy/0"), skip("toy/1"), RAISED, structure_check("o"), check)
    whole = ran("whole", *NAMES, *others, gated=gated)
    before = [files_in(shard) for shard in shards]
    results = merge(list(reversed(shards)), tmp_path / "merged")
    assert files_in(tmp_path / "merged") == files_in(whole)
    assert [files_in(shard) for shard in shards] == before
    assert set(results.cases) == {f"toy/wint4_aint8/{name}" for name in NAMES}
    assert set(results.skips) == {"toy/0", "toy/1"}


def test_shard_of_skips_alone_can_be_merged(tmp_path, ran):
    folders = [ran("a", "default", shard="1/2"), ran("b", skip("toy/skip"), shard="2/2")]
    assert set(merge(folders, tmp_path / "merged").skips) == {"toy/skip"}


@pytest.mark.parametrize(
    ("shards", "problem"),
    [
        (
            ("2/4", "4/4"),
            "missing shards: 1/4, 3/4; pass their folders too, or --partial to merge without them",
        ),
        (("1/2", "2/3"), "shards of different runs: some of 2, some of 3"),
    ],
)
def test_incomplete_shards_are_refused(tmp_path, ran, shards, problem):
    folders = [ran("a", "default", shard=shards[0]), ran("b", "w_group64", shard=shards[1])]
    assert refusal(folders, tmp_path / "merged") == problem


def test_lost_cases_are_refused_with_how_to_get_them(tmp_path, ran):
    folder = ran("a", "default", lost=("toy/gone", "toy/lost", "toy/missing"))
    assert refusal([folder], tmp_path / "merged") == (
        f"{folder} lost toy/gone and 2 more; run it again with --aq-resume, or pass --partial "
        "to merge without them"
    )


def test_partial_merge_names_cases_that_no_folder_measured(tmp_path, ran):
    folders = [
        ran("a", "default", shard="1/3", lost=("toy/z", "toy/wint4_aint8/w_group64")),
        ran("b", "w_group64", shard="3/3", lost=("toy/b", "toy/a")),
    ]
    results = merge(folders, tmp_path / "merged", partial=True)
    assert (len(results.cases), results.lost) == (2, ("toy/a", "toy/b", "toy/z"))
    summary = json.loads((tmp_path / "merged" / "summary.json").read_text())
    assert summary["lost"] == ["toy/a", "toy/b", "toy/z"]


def test_summary_that_names_a_missing_manifest_is_refused(tmp_path, ran, measured):
    folder = ran("a", "default", "w_group64")
    (folder / measured["default"].path).unlink()
    assert refusal([folder], tmp_path / "merged") == (
        f"{folder} has no manifest of {DEFAULT}, which its summary lists"
    )


def test_outcomes_of_a_killed_shard_are_merged_from_its_log(tmp_path, ran):
    folder = ran("a", "default", shard="1/1")
    write_expected(folder, SessionResults(lost=(DEFAULT, "toy/raised", "toy/lost"), shard="1/1"))
    outcome_log.append(folder, RAISED)
    assert refusal([folder], tmp_path / "merged").startswith(f"{folder} lost toy/lost;")
    results = merge([folder], tmp_path / "merged", partial=True)
    assert (set(results.cases), set(results.errors), results.lost) == (
        {DEFAULT},
        {"toy/raised"},
        ("toy/lost",),
    )


@pytest.mark.parametrize(
    ("outcomes", "more"),
    [
        (("default", "w_group64"), " and 1 more"),
        ((skip(DEFAULT),), ""),
        ((FailedCase(case_id=DEFAULT, problem="x"),), ""),
    ],
)
def test_same_case_in_two_folders_is_refused(tmp_path, ran, outcomes, more):
    first, second = ran("a", *NAMES), ran("b", *outcomes)
    assert refusal([first, second], tmp_path / "merged", partial=True) == (
        f"{second} and {first} both hold {DEFAULT}{more}; pass only one of them"
    )


def test_folder_passed_twice_is_refused(tmp_path, ran):
    folder = ran("a", "default")
    text = refusal([folder, folder], tmp_path / "merged")
    assert text == f"{folder}: was passed more than once; pass it once"


@pytest.mark.parametrize(
    ("field", "part", "values", "shown"),
    [
        ("model", "model", {"digest": "e" * 64}, ("d" * 16, "e" * 16)),
        ("dtype", "model", {"dtype": "bfloat16"}, ("float32", "bfloat16")),
        ("device", "environment", {"device": "cuda"}, ("cpu", "cuda")),
        ("modelopt", "environment", {"modelopt": "0.48.0"}, ("0.47.0", "0.48.0")),
        ("torch", "environment", {"torch": "2.12.0"}, ("2.11.0", "2.12.0")),
        ("transformers", "environment", {"transformers": "5.1"}, ("5.14.0", "5.1")),
        ("harness", "environment", {"harness": "0.2.0"}, ("0.1.0", "0.2.0")),
        ("captions of size small", "dataset", {"sha256": "e" * 64}, ("c" * 16, "e" * 16)),
        (
            "scored captions of size small",
            "dataset",
            {"num_score_samples": 2, "scored_captions": (), "scored_predictions": ()},
            ("3", "2"),
        ),
    ],
)
def test_cases_measured_on_different_things_are_refused_with_a_file_of_each(
    tmp_path, ran, measured, field, part, values, shown
):
    first, second = measured["default"], changed(measured["w_group64"], part, **values)
    third = changed(measured["w_group128"], part, **values)
    if field == "dtype":
        second, third = (changed(case, "run_config", **values) for case in (second, third))
    folders = [ran("a", first), ran("b", second, third)]
    assert refusal(folders, tmp_path / "merged", partial=True) == (
        f"{field} differs: {shown[0]} in {folders[0] / first.path}, "
        f"{shown[1]} in {folders[1] / min(second.path, third.path)}"
    )


def test_commits_are_compared_where_they_are_recorded(tmp_path, ran, measured):
    one, other = (
        changed(measured[g], "model", commit=c * 40)
        for g, c in (("w_group64", "1"), ("w_group128", "2"))
    )
    folders = [ran("a", measured["default"]), ran("b", one), ran("c", other)]
    refused = refusal(folders, tmp_path / "merged", partial=True)
    assert refused.startswith(f"commit differs: {'1' * 16} in {folders[1]}")
    assert f"{'2' * 16} in {folders[2]}" in refused


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": ({"harness": "0.1.0+m1"}, {"harness": "0.2.0+m1"})},
        {"case": ({}, {"size": "large"}), "dataset": ({}, {"sha256": "e" * 64})},
        {"quantization": ({}, {"digest": "e" * 64})},
    ],
    ids=["package of one measurement version", "captions of another size", "config"],
)
def test_comparable_cases_are_merged(tmp_path, ran, measured, changes):
    cases = [measured["default"], measured["w_group64"]]
    for part, values in changes.items():
        cases = [changed(case, part, **v) for case, v in zip(cases, values, strict=True)]
    results = merge([ran("a", cases[0]), ran("b", cases[1])], tmp_path / "merged")
    assert set(results.cases) == {case.case.case_id for case in cases}


def test_all_problems_are_reported_together(tmp_path, ran, measured):
    other = changed(measured["default"], "environment", torch="2.12.0")
    folders = [ran("a", "default", shard="1/3", lost=("toy/gone",)), ran("b", other, shard="2/3")]
    problems = refusal(folders, tmp_path / "merged").splitlines()
    expected = ("both hold", "torch differs", "missing shards: 3/3", "lost toy/gone")
    assert len(problems) == len(expected)
    assert [part for part, line in zip(expected, problems, strict=True) if part not in line] == []


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("summary.json", '{"schema_version": 99}', "was written by a newer version: schema 99"),
        ("summary.json", "{}", "is not "),
        ("manifest", "{", "is not JSON: "),
    ],
)
def test_unreadable_record_is_refused_by_its_path(tmp_path, ran, measured, file, content, problem):
    folder = ran("a", "default")
    path = folder / (measured["default"].path if file == "manifest" else file)
    path.unlink()
    if content is not None:
        path.write_text(content)
    text = refusal([folder], tmp_path / "merged", partial=True)
    assert text.startswith(f"{path}: {problem}")


def test_target_that_cannot_be_written_is_refused(tmp_path, ran):
    folder = ran("a", "default")
    (tmp_path / "taken").write_text("a file in the way")
    with pytest.raises(WriteError, match=r"taken: cannot be written"):
        merge([folder], tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file in the way"


def test_folders_that_are_no_reports_or_passed_twice_are_all_named(tmp_path, ran):
    folder = ran("a", "default")
    away, empty = tmp_path / "away", tmp_path / "empty"
    empty.mkdir()
    assert refusal([folder, away, folder, empty], tmp_path / "merged").splitlines() == [
        f"{folder}: was passed more than once; pass it once",
        f"{away}: no such folder; pass the report folder of a run",
        f"{empty}: holds no summary.json; pass the report folder of a run",
    ]


def test_cases_selected_under_different_budgets_are_refused(tmp_path, ran, measured):
    folders = [ran("a", "default"), ran("b", with_budget(measured["w_group64"], 6.0))]
    text = refusal(folders, tmp_path / "merged", partial=True)
    assert text.startswith(f"bit budget differs: 8 in {folders[0]}/")
    assert f", 6 in {folders[1]}/" in text
