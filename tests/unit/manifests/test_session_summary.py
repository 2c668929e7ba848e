"""The session summary: read back as written, refused with the field that is wrong."""

import json
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.manifests.json_record import SCHEMA_VERSION
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.session_summary import (
    GroupShare,
    OutcomeCounts,
    SessionSummary,
    SummaryCase,
    dump_summary,
    read_summary,
)

EMPTY = {"schema_version": SCHEMA_VERSION, "cases": [], "skipped": [], "errors": []}
EMPTY |= {"structure": []}
SKIP = {"case_id": "a", "status": "needs-cuda", "reason": "no CUDA", "effective_bits": 4.25}
OPTIONAL_PARTS = ("counts", "shard", "command", "gated", "reruns", "kept", "lost", "left_out")


@pytest.fixture
def summary():
    """One outcome of every kind."""
    return SessionSummary(
        counts=OutcomeCounts(measured=1, skipped=1, failed=1, structure=1, gated=1, lost=1),
        shard="2/3",
        command="pytest --aq-pairs all",
        cases=(
            SummaryCase(
                case_id="toy/p/g/small/gradient",
                pair="p",
                granularity="g",
                size="small",
                status="measured",
                alias_of=None,
                experimental=False,
                problems=(),
                effective_bits=4.25,
                total_score=10.0,
                top_group="mlp",
                selected_groups=2,
                manifest="toy/p/g/small/x.json",
                num_groups=3,
                selection_bits=7.5,
                is_satisfied=True,
            ),
        ),
        skipped=(SkippedCase(**SKIP),),
        errors=(FailedCase(case_id="e", problem="out of memory"),),
        gated={"toy/p/g/small/gradient": "drifted"},
        reruns={"toy/p/g/small/gradient": "torch 1 -> 2"},
        kept=("k",),
        lost=("l",),
        structure=(
            StructureCheck(
                pair="p",
                granularity="g",
                status="supported",
                reason="",
                format_name="F",
                effective_bits=8.0,
                digest="d",
            ),
        ),
        most_sensitive_groups=(GroupShare(group="mlp", mean_share=0.6),),
        left_out=("x.json: is not JSON",),
        write_errors=("y.json: cannot be written: No space left on device",),
    )


@pytest.fixture
def saved(tmp_path):
    """Write a summary file; return its path."""

    def save(content):
        path = tmp_path / "summary.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


def test_summary_reads_back_as_written(saved, summary):
    read = read_summary(saved(dump_summary(summary)))
    assert read == summary
    assert (read.case_ids, read.part) == (("toy/p/g/small/gradient",), Shard(index=2, count=3))


def test_half_a_surrogate_pair_is_replaced(saved, summary):
    odd = replace(summary, command="pytest a\udcffb")
    assert read_summary(saved(dump_summary(odd))).command == "pytest a\ufffdb"


def test_summary_without_shard_has_no_part(saved, summary):
    assert read_summary(saved(dump_summary(replace(summary, shard=None)))).part is None


@pytest.mark.parametrize("absent", [(), *((name,) for name in OPTIONAL_PARTS), OPTIONAL_PARTS])
def test_parts_that_older_summaries_lack_are_optional(saved, summary, absent):
    document = json.loads(dump_summary(summary))
    for name in absent:
        del document[name]
    read = read_summary(saved(json.dumps(document)))
    empty = read_summary(saved(json.dumps(EMPTY)))
    assert read == replace(summary, **{name: getattr(empty, name) for name in absent})


def test_bits_of_a_skipped_case_may_be_absent(saved):
    older = {key: value for key, value in SKIP.items() if key != "effective_bits"}
    path = saved(json.dumps(EMPTY | {"skipped": [SKIP, older]}))
    assert [skip.effective_bits for skip in read_summary(path).skipped] == [4.25, None]


def test_missing_summary_is_refused(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(RecordError) as caught:
        read_summary(path)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"


def test_newer_summary_is_refused(saved):
    path = saved(json.dumps({"schema_version": SCHEMA_VERSION + 1, "new": "shape"}))
    with pytest.raises(RecordError) as caught:
        read_summary(path)
    assert str(caught.value) == (
        f"{path}: was written by a newer version: schema {SCHEMA_VERSION + 1}, this version reads "
        f"up to {SCHEMA_VERSION}; upgrade pytest-autoquant"
    )


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"skipped": None}, "skipped"),
        ({"skipped": 3}, "skipped"),
        ({"skipped": ["a"]}, "skipped.0"),
        ({"skipped": [{"case_id": "a"}]}, "skipped.0.status"),
        ({"skipped": [SKIP | {"case_id": []}]}, "skipped.0.case_id"),
        ({"skipped": [SKIP | {"status": None}]}, "skipped.0.status"),
        ({"skipped": [SKIP | {"more": "m"}]}, "skipped.0.more"),
        ({"skipped": [SKIP | {"effective_bits": "x"}]}, "skipped.0.effective_bits"),
        ({"skipped": [SKIP | {"effective_bits": 10**400}]}, "skipped.0.effective_bits"),
        ({"errors": [{"case_id": "a", "problem": 3}]}, "errors.0.problem"),
        ({"structure": [{"pair": "p", "effective_bits": "8"}]}, "structure.0.granularity"),
        ({"cases": [{"case_id": "a"}]}, "cases.0.pair"),
        ({"gated": ["a"]}, "gated"),
        ({"gated": None}, "gated"),
        ({"gated": {"a": 1}}, "gated.a"),
        ({"command": 3}, "command"),
        ({"lost": 3}, "lost"),
        ({"lost": None}, "lost"),
        ({"shard": "1"}, ""),
        ({"shard": "1/2/3"}, ""),
        ({"shard": "3/2"}, ""),
        ({"shard": "a/b"}, ""),
        ({"shard": [1, 2]}, "shard"),
        ({"shard": 3}, "shard"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_malformed_part_is_refused_with_its_field(saved, changed, field):
    path = saved(json.dumps(EMPTY | changed))
    with pytest.raises(RecordError) as caught:
        read_summary(path)
    assert str(caught.value).startswith(f"{path}: is not a valid session summary: {field}: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is not JSON: "),
        (b"\xff\xfe", "is not JSON: "),
        ('{"skipped": NaN}', "is not JSON: NaN is not a JSON number"),
        pytest.param('{"skipped": ' + "[" * 100_000, "is not JSON: it nests too deep", id="deep"),
        ("null", "is not a session summary: it has no schema_version"),
        ("[]", "is not a session summary: it has no schema_version"),
        ("{}", "is not a session summary: it has no schema_version"),
        ('{"schema_version": null}', "is not a session summary: it has no schema_version"),
        ('{"schema_version": "1"}', "is not a session summary: it has no schema_version"),
        ('{"schema_version": true}', "is not a session summary: it has no schema_version"),
        ('{"schema_version": 0}', "is not a session summary: it has no schema_version"),
    ],
)
def test_other_file_is_refused(saved, content, problem):
    path = saved(content)
    with pytest.raises(RecordError) as caught:
        read_summary(path)
    assert str(caught.value).startswith(f"{path}: {problem}")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@settings(deadline=None, max_examples=100)
@given(
    gated=st.dictionaries(texts, texts, max_size=3),
    lost=st.lists(texts, max_size=3),
    skips=st.lists(
        st.builds(
            SkippedCase,
            case_id=texts,
            status=texts,
            reason=texts,
            effective_bits=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=3,
    ),
)
def test_any_text_reads_back_as_written(tmp_path_factory, gated, lost, skips):
    path = tmp_path_factory.getbasetemp() / "summary.json"
    written = SessionSummary(
        cases=(), errors=(), structure=(), skipped=tuple(skips), gated=gated, lost=tuple(lost)
    )
    path.write_text(dump_summary(written))
    event(f"skips: {len(skips)}")
    assert read_summary(path) == written
