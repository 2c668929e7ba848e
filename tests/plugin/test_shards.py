"""Shards: jobs that start independently, joined into the report that one run would have written."""

import json
import re
import shutil

import pytest
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest

pytestmark = pytest.mark.slow

COUNT = 3


@pytest.fixture(scope="module")
def shards(new_project, grid_arguments):
    """Every shard of the grid in a report folder of its own."""
    project = new_project("shards")
    runs = [
        project.run(*grid_arguments, f"--aq-shard={i}/{COUNT}", f"--aq-report-dir=shard{i}")
        for i in range(1, COUNT + 1)
    ]
    assert [run.status for run in runs] == [0] * COUNT, "\n".join(run.output for run in runs)
    return project


@pytest.fixture
def folders(shards):
    return [shards.folder / f"shard{i}" for i in range(1, COUNT + 1)]


@pytest.fixture
def refused(shards, tmp_path):
    """Merge what must not be merged; return the one message."""

    def run(*folders):
        done = shards.harness("merge", *map(str, folders), "--into", str(tmp_path / "merged"))
        assert done.status == 2
        assert not (tmp_path / "merged").exists()
        message = done.output.strip()
        assert message.startswith("aq-harness: ")
        assert "Traceback" not in message
        return message.removeprefix("aq-harness: ")

    return run


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_shards_are_about_equal_and_together_every_case_once(grid, folders):
    summaries = [summary_of(folder) for folder in folders]
    assert [summary["shard"] for summary in summaries] == ["1/3", "2/3", "3/3"]
    whole = summary_of(grid.root)
    for what in ("cases", "skipped"):
        found = [line["case_id"] for summary in summaries for line in summary[what]]
        assert sorted(found) == [line["case_id"] for line in whole[what]]
        assert len(found) == {"cases": 12, "skipped": 6}[what]
    structures = [
        (line["pair"], line["granularity"])
        for summary in summaries
        for line in summary["structure"]
    ]
    assert len(structures) == len(set(structures)) == 9
    assert all(len(summary["structure"]) == 3 for summary in summaries)
    assert all(summary["cases"] for summary in summaries)


def without_command(root, copy, shards):
    """Copy a report as it would be if no one command had written it: several wrote the merged."""
    shutil.copytree(root, copy)
    summary = summary_of(copy)
    assert summary.pop("command").startswith("pytest ")
    summary["last_run"] |= {"command": None, "started": None, "seconds": None, "timing": []}
    (copy / "summary.json").write_text(json.dumps(summary))
    assert shards.harness("render", str(copy)).status == 0
    assert "command" in summary_of(copy)
    return copy


def test_merged_shards_are_the_unsharded_run_file_for_file(
    grid, shards, folders, contents, tmp_path
):
    names = [folder.name for folder in folders[::-1]]
    merged = shards.harness("merge", *names, "--into", "merged")
    assert merged.status == 0, merged.output
    skipped = "6 skipped (needs-cuda 4, unsupported 2)"
    counted = f"8 measured, 4 aliases, 0 failed, {skipped}, 9 structure cases"
    assert merged.output.strip() == f"merged: {counted}"
    assert f"\n{counted}\n" in grid.output
    here = contents(without_command(grid.root, tmp_path / "whole", shards))
    there = contents(shards.folder / "merged")
    assert len(here) == 4 * 12 + 4 + 2
    assert there.keys() == here.keys()
    for name, content in here.items():
        assert there[name] == content, name


def test_a_missing_shard_is_refused_unless_it_may_be(refused, shards, folders, tmp_path):
    message = refused(folders[0], folders[2])
    assert (
        message == "missing shards: 2/3; pass their folders too, or --partial to merge without them"
    )
    some = map(str, (folders[0], folders[2]))
    partial = shards.harness("merge", *some, "--partial", "--into", str(tmp_path / "partial"))
    assert partial.status == 0
    expected = {line["case_id"] for i in (0, 2) for line in summary_of(folders[i])["cases"]}
    assert {m["case_id"] for m in summary_of(tmp_path / "partial")["cases"]} == expected


def test_a_shard_given_twice_is_refused(refused, folders, tmp_path):
    again = shutil.copytree(folders[1], tmp_path / "again")
    message = refused(*folders, again)
    assert re.fullmatch(
        rf"{again} and {folders[1]} both hold tiny-qwen3-vl/\S+ and \d+ more; pass only one .*",
        message,
    )


def test_shards_measured_on_different_captions_are_refused(refused, folders, tmp_path):
    other = shutil.copytree(folders[1], tmp_path / "other")
    paths = [p for p in find_manifests(other) if read_manifest(p).case.size == "small"]
    for path in paths:
        document = json.loads(path.read_text())
        document["dataset"]["sha256"] = "f" * 64
        path.write_text(json.dumps(document))
    message = refused(folders[0], other, folders[2])
    assert paths
    assert re.fullmatch(
        r"captions of size small differs: \w{16} in \S+\.json, f{16} in \S+\.json", message
    )


@pytest.mark.parametrize("given", ["0/3", "4/3", "x", "1/0", "1/3/3", "-1/3"])
def test_a_shard_that_does_not_exist_is_a_usage_error(project, given):
    result = project.runpytest_inprocess("-p", "no:cacheprovider", f"--aq-shard={given}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().strip() == (
        f"ERROR: --aq-shard: {given!r} is not allowed; give I/N with I from 1 to N, such as 1/4"
    )
    assert not (project.path / "reports").exists()
