"""Joining report folders: one report of several runs, or a reason why not and nothing written."""

import json
from dataclasses import replace

import pytest
from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.manifests import outcome_log
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.reports.merge import merge
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_case, write_expected, write_summary

NAMES = ("default", "w_group64", "w_group128", "a_per_token_dynamic")


def changed(manifest, part, **values):
    """Return the manifest with some fields of one of its parts replaced."""
    return replace(manifest, **{part: replace(getattr(manifest, part), **values)})


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def skip(case_id):
    return SkippedCase(case_id=case_id, status="needs-cuda", reason="RuntimeError: no CUDA")


def structure(pair, status="supported"):
    return StructureCheck(
        pair=pair,
        granularity="default",
        status=status,
        reason="",
        format_name="F",
        effective_bits=8.0,
        digest="d",
    )


@pytest.fixture
def measured(manifest):
    """The same measurement under four overlays, by overlay."""
    return {
        name: changed(manifest, "case", granularity=name, case_id=f"toy/wint4_aint8/{name}")
        for name in NAMES
    }


@pytest.fixture
def ran(tmp_path):
    """Write what a run leaves: its manifests and its summary. Returns the folder."""

    def run(name, manifests=(), **known):
        root, results = tmp_path / name, SessionResults(**known)
        for manifest in manifests:
            write_case(root, manifest)
            results.add(case_result_of(manifest))
        write_summary(root, results)
        return root

    return run


def by_id(*lines):
    return {line.case_id: line for line in lines}


def matrix(*lines):
    return {(line.pair, line.granularity): line for line in lines}


def refusal(folders, target, **options):
    """Return why the folders are not joined; nothing may have been written."""
    with pytest.raises(RecordError) as caught:
        merge(folders, target, **options)
    assert not target.exists()
    return str(caught.value)


def test_merged_shards_equal_the_whole_run_byte_for_byte(tmp_path, ran, measured):
    raised = FailedCase(case_id="toy/raised", problem="out of memory")
    parts = (
        {
            "manifests": [measured["w_group64"], measured["default"]],
            "skips": by_id(skip("toy/skip 1")),
            "structures": matrix(structure("p"), structure("q", "needs-cuda")),
            "gated": {"toy/wint4_aint8/default": "drifted"},
        },
        {
            "manifests": [measured["a_per_token_dynamic"]],
            "skips": by_id(skip("toy/skip 0")),
            "errors": by_id(raised),
            "structures": matrix(structure("o")),
        },
        {"manifests": [measured["w_group128"]]},
    )
    shards = [ran(f"shard {i}", **part, shard=f"{i}/3") for i, part in enumerate(parts, start=1)]
    whole = ran(
        "whole",
        measured.values(),
        skips=by_id(skip("toy/skip 0"), skip("toy/skip 1")),
        errors=by_id(raised),
        structures=matrix(structure("o"), structure("p"), structure("q", "needs-cuda")),
        gated={"toy/wint4_aint8/default": "drifted"},
    )
    merge(list(reversed(shards)), tmp_path / "merged")
    assert files(tmp_path / "merged") == files(whole)


def test_merged_results_are_returned(tmp_path, ran, measured):
    first = ran("a", [measured["default"]], skips=by_id(skip("toy/skip")))
    second = ran("b", [measured["w_group64"]])
    results = merge([first, second], tmp_path / "merged")
    assert set(results.cases) == {"toy/wint4_aint8/default", "toy/wint4_aint8/w_group64"}
    assert set(results.skips) == {"toy/skip"}


def test_sources_are_unchanged(tmp_path, ran, measured):
    folders = [ran("a", [measured["default"]]), ran("b", [measured["w_group64"]])]
    before = [files(folder) for folder in folders]
    merge(folders, tmp_path / "merged")
    assert [files(folder) for folder in folders] == before


def test_shard_of_skips_alone_can_be_merged(tmp_path, ran, measured):
    folders = [
        ran("a", [measured["default"]], shard="1/2"),
        ran("b", skips=by_id(skip("toy/skip")), shard="2/2"),
    ]
    assert set(merge(folders, tmp_path / "merged").skips) == {"toy/skip"}


# Missing shards and lost cases


def test_missing_shards_are_named(tmp_path, ran, measured):
    folders = [
        ran("a", [measured["default"]], shard="2/4"),
        ran("b", [measured["w_group64"]], shard="4/4"),
    ]
    assert refusal(folders, tmp_path / "merged") == (
        "missing shards: 1/4, 3/4; pass their folders too, or --partial to merge without them"
    )


def test_shards_of_runs_of_different_counts_are_refused(tmp_path, ran, measured):
    folders = [
        ran("a", [measured["default"]], shard="1/2"),
        ran("b", [measured["w_group64"]], shard="2/3"),
    ]
    assert refusal(folders, tmp_path / "merged") == (
        "shards of different runs: some of 2, some of 3"
    )


def test_lost_cases_are_refused_with_how_to_get_them(tmp_path, ran, measured):
    folder = ran("a", [measured["default"]], lost=("toy/gone", "toy/lost", "toy/missing"))
    assert refusal([folder], tmp_path / "merged") == (
        f"{folder} lost toy/gone and 2 more; run it again with --aq-resume, or pass --partial "
        "to merge without them"
    )


def test_partial_merge_names_lost_cases(tmp_path, ran, measured):
    folders = [
        ran("a", [measured["default"]], shard="1/3", lost=("toy/z",)),
        ran("b", [measured["w_group64"]], shard="3/3", lost=("toy/b", "toy/a")),
    ]
    results = merge(folders, tmp_path / "merged", partial=True)
    assert (len(results.cases), results.lost) == (2, ("toy/a", "toy/b", "toy/z"))
    summary = json.loads((tmp_path / "merged" / "summary.json").read_text())
    assert summary["lost"] == ["toy/a", "toy/b", "toy/z"]


def test_lost_case_measured_in_another_run_is_not_lost(tmp_path, ran, measured):
    folders = [ran("a", lost=("toy/wint4_aint8/default",)), ran("b", [measured["default"]])]
    assert merge(folders, tmp_path / "merged", partial=True).lost == ()


def test_summary_that_names_a_missing_manifest_is_refused(tmp_path, ran, measured):
    folder = ran("a", [measured["default"], measured["w_group64"]])
    (folder / measured["default"].path).unlink()
    assert "toy/wint4_aint8/default" in refusal([folder], tmp_path / "merged")


def test_outcomes_of_a_killed_shard_are_merged_from_its_log(tmp_path, ran, measured):
    folder = ran("a", [measured["default"]], shard="1/1")
    expected = ("toy/wint4_aint8/default", "toy/failed", "toy/lost")
    write_expected(folder, SessionResults(lost=expected, shard="1/1"))
    outcome_log.append(folder, FailedCase(case_id="toy/failed", problem="out of memory"))
    assert refusal([folder], tmp_path / "merged").startswith(f"{folder} lost toy/lost;")
    results = merge([folder], tmp_path / "merged", partial=True)
    assert (set(results.cases), set(results.errors), results.lost) == (
        {"toy/wint4_aint8/default"},
        {"toy/failed"},
        ("toy/lost",),
    )


# The same case twice


def test_same_case_in_two_folders_is_refused(tmp_path, ran, measured):
    first = ran("a", measured.values())
    second = ran("b", [measured["default"], measured["w_group64"]])
    assert refusal([first, second], tmp_path / "merged") == (
        f"{second} and {first} both hold toy/wint4_aint8/default and 1 more; pass only one of them"
    )


@pytest.mark.parametrize(
    "known",
    [
        {"skips": by_id(skip("toy/wint4_aint8/default"))},
        {"errors": by_id(FailedCase(case_id="toy/wint4_aint8/default", problem="x"))},
    ],
)
def test_case_measured_in_one_folder_and_not_in_another_is_refused(tmp_path, ran, measured, known):
    first, second = ran("a", [measured["default"]]), ran("b", **known)
    assert refusal([first, second], tmp_path / "merged") == (
        f"{second} and {first} both hold toy/wint4_aint8/default; pass only one of them"
    )


def test_folder_given_twice_is_refused_even_if_partial(tmp_path, ran, measured):
    folder = ran("a", [measured["default"]])
    text = refusal([folder, folder], tmp_path / "merged", partial=True)
    assert text == f"{folder}: was passed more than once; pass it once"


# Measured on different things


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
    ],
)
def test_cases_measured_on_different_things_are_refused_with_a_file_of_each(
    tmp_path, ran, measured, field, part, values, shown
):
    first, second = measured["default"], changed(measured["w_group64"], part, **values)
    folders = [ran("a", [first]), ran("b", [second])]
    text = refusal(folders, tmp_path / "merged", partial=True)
    assert text == (
        f"{field} differs: {shown[0]} in {folders[0] / first.path}, "
        f"{shown[1]} in {folders[1] / second.path}"
    )


def test_shards_of_two_package_versions_with_one_measurement_version_are_merged(
    tmp_path, ran, measured
):
    cases = [
        changed(measured[name], "environment", harness=version)
        for name, version in (("default", "0.1.0+m1"), ("w_group64", "0.2.0+m1"))
    ]
    folders = [ran(name, [case]) for name, case in zip("ab", cases, strict=True)]
    results = merge(folders, tmp_path / "merged")
    assert set(results.cases) == {case.case.case_id for case in cases}


def test_different_field_is_reported_once(tmp_path, ran, measured):
    others = [
        changed(measured[name], "environment", torch=version, device="cuda")
        for name, version in (("w_group64", "2.12.0"), ("w_group128", "2.13.0"))
    ]
    folders = [ran("a", [measured["default"]]), ran("b", others)]
    lines = refusal(folders, tmp_path / "merged").splitlines()
    assert [line.split(" differs")[0] for line in lines] == ["device", "torch"]


def test_captions_of_different_sizes_may_differ(tmp_path, ran, measured):
    large = changed(measured["w_group64"], "case", size="large")
    large = changed(large, "dataset", sha256="e" * 64)
    folders = [ran("a", [measured["default"]]), ran("b", [large])]
    assert len(merge(folders, tmp_path / "merged").cases) == 2


def test_cases_of_one_report_may_differ_in_their_configs(tmp_path, ran, measured):
    other = changed(measured["w_group64"], "quantization", digest="e" * 64)
    folders = [ran("a", [measured["default"]]), ran("b", [other])]
    assert len(merge(folders, tmp_path / "merged").cases) == 2


def test_all_problems_are_reported_together(tmp_path, ran, measured):
    other = changed(measured["default"], "environment", torch="2.12.0")
    folders = [
        ran("a", [measured["default"]], shard="1/3", lost=("toy/gone",)),
        ran("b", [other], shard="2/3"),
    ]
    problems = refusal(folders, tmp_path / "merged").splitlines()
    told = ("both hold", "torch differs", "missing shards: 3/3", "lost toy/gone")
    assert [said in problem for said, problem in zip(told, problems, strict=True)] == [True] * 4


# Folders that are no reports


def test_folder_without_a_summary_is_refused(tmp_path, ran, measured):
    folder = ran("a", [measured["default"]])
    (folder / "summary.json").unlink()
    assert refusal([folder], tmp_path / "merged") == (
        f"{folder}: holds no summary.json; pass the report folder of a run"
    )


def test_summary_of_a_newer_version_is_refused(tmp_path, ran, measured):
    path = ran("a", [measured["default"]]) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    text = refusal([path.parent], tmp_path / "merged")
    assert text.startswith(f"{path}: was written by a newer version: schema 99")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b'{"schema_version": 1, "skipped": [[]]}'],
)
def test_hostile_summary_is_refused_by_its_path(tmp_path, ran, measured, content):
    path = ran("a", [measured["default"]]) / "summary.json"
    path.write_bytes(content)
    text = refusal([path.parent], tmp_path / "merged")
    assert text.startswith(f"{path}: is not ")


def test_summary_with_a_number_that_is_not_finite_is_refused_by_its_path(tmp_path, ran, measured):
    path = ran("a", [measured["default"]], structures=matrix(structure("p"))) / "summary.json"
    document = json.loads(path.read_text())
    document["structure"][0]["effective_bits"] = float("nan")
    path.write_text(json.dumps(document))
    assert refusal([path.parent], tmp_path / "merged").startswith(f"{path}: ")


def test_unreadable_manifest_is_refused_by_its_path(tmp_path, ran, measured):
    folder = ran("a", [measured["default"]])
    path = folder / measured["default"].path
    path.write_text("{")
    text = refusal([folder], tmp_path / "merged", partial=True)
    assert text.startswith(f"{path}: is not JSON: ")


def test_target_that_cannot_be_written_is_refused(tmp_path, ran, measured):
    folder = ran("a", [measured["default"]])
    (tmp_path / "taken").write_text("a file in the way")
    with pytest.raises(WriteError, match=r"taken: cannot be written"):
        merge([folder], tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file in the way"


def test_folders_that_are_no_reports_or_passed_twice_are_all_named(tmp_path, ran, measured):
    folder = ran("a", [measured["default"]])
    away, empty = tmp_path / "away", tmp_path / "empty"
    empty.mkdir()
    assert refusal([folder, away, folder, empty], tmp_path / "merged").splitlines() == [
        f"{folder}: was passed more than once; pass it once",
        f"{away}: no such folder; pass the report folder of a run",
        f"{empty}: holds no summary.json; pass the report folder of a run",
    ]
