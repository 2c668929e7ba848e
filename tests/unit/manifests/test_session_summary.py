"""The session summary: its parts, and the files from which it is refused."""

import json
from dataclasses import replace

import pytest
from pytest_autoquant.errors import RecordError
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.manifests.records.json_record import SCHEMA_VERSION
from pytest_autoquant.manifests.records.session_summary import dump_summary, read_summary

EMPTY = {"schema_version": SCHEMA_VERSION, "cases": [], "skipped": [], "errors": []}
EMPTY |= {"structure": []}
OPTIONAL_PARTS = ("counts", "shard", "command", "last_run", "gated", "reruns", "kept", "lost")


@pytest.fixture
def read(tmp_path):
    """Write a summary file and read it."""
    path = tmp_path / "summary.json"

    def write_and_read(content):
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return read_summary(path)

    return write_and_read


def test_case_ids_and_part_are_those_of_the_file(read, summary):
    found = read(dump_summary(summary))
    assert found == summary
    assert (found.case_ids, found.part) == (("toy/p/g/small/gradient",), Shard(index=2, count=3))
    assert read(dump_summary(replace(summary, shard=None))).part is None


def test_half_a_surrogate_pair_is_replaced(read, summary):
    odd = replace(summary, command="pytest a\udcffb")
    assert read(dump_summary(odd)).command == "pytest a\ufffdb"


@pytest.mark.parametrize("absent", [*((name,) for name in OPTIONAL_PARTS), OPTIONAL_PARTS])
def test_parts_that_older_summaries_lack_are_optional(read, summary, absent):
    document = json.loads(dump_summary(summary))
    for name in absent:
        del document[name]
    empty = read(EMPTY)
    assert read(document) == replace(summary, **{name: getattr(empty, name) for name in absent})


def test_bits_of_a_skipped_case_may_be_absent(read):
    skip = {"case_id": "a", "status": "needs-cuda", "reason": "no CUDA"}
    (found,) = read(EMPTY | {"skipped": [skip]}).skipped
    assert found.effective_bits is None


@pytest.mark.parametrize("shard", ["1", "1/2/3", "3/2", "a/b"])
def test_malformed_shard_is_refused(tmp_path, read, shard):
    with pytest.raises(RecordError) as caught:
        read(EMPTY | {"shard": shard})
    path = tmp_path / "summary.json"
    assert str(caught.value).startswith(f"{path}: is not a valid session summary: : Value error")


def test_missing_summary_is_refused(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(RecordError) as caught:
        read_summary(path)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"
