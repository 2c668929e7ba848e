"""The outcome log: nothing that was appended is lost, and damage is named by its line."""

import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from builders import structure_check
from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.manifests.records.outcome_log import OUTCOME_LOG, append, compact, read
from pytest_autoquant.manifests.records.outcomes import FailedCase, KeptCase, SkippedCase

SKIP = SkippedCase(case_id="a", status="needs-cuda", reason="größe\nno CUDA", effective_bits=4.25)
FAILED = FailedCase(case_id="b", problem="an escape in a text: \\ud800")
KEPT = KeptCase(case_id="c")
STRUCTURE = structure_check()
ALL = (SKIP, FAILED, KEPT, STRUCTURE)
INVALID = "is not a valid logged outcome: "
LINE = b'{"schema_version": 1, "kind": "kept", "case_id": "c"}\n'


def append_all(root, outcomes):
    for outcome in outcomes:
        append(root, outcome)


def test_outcomes_of_every_kind_read_back_in_order(tmp_path):
    root = tmp_path / "new" / "root"
    assert read(root) == ()
    append_all(root, ALL)
    assert read(root) == ALL
    assert (root / OUTCOME_LOG).read_bytes().splitlines()[2] == LINE.rstrip()


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    append(tmp_path, FailedCase(case_id="a", problem="a\udcffb \U0001f600"))
    assert read(tmp_path) == (FailedCase(case_id="a", problem="a\ufffdb \U0001f600"),)


def test_last_outcome_of_a_case_replaces_earlier_ones(tmp_path):
    later = (
        FailedCase(case_id="a", problem="out of memory"),
        SkippedCase(case_id="c", status="unsupported", reason="refused"),
        replace(STRUCTURE, status="unsupported", digest="e"),
    )
    append_all(tmp_path, (*ALL, *later))
    assert read(tmp_path) == (FAILED, *later)


@pytest.mark.parametrize("kept", [0, 1, 20, len(LINE) - 1])
def test_incomplete_last_line_is_ignored_and_then_replaced(tmp_path, kept):
    append(tmp_path, SKIP)
    with (tmp_path / OUTCOME_LOG).open("ab") as stream:
        stream.write(LINE[:kept])
    assert read(tmp_path) == (SKIP,)
    append(tmp_path, FAILED)
    assert read(tmp_path) == (SKIP, FAILED)


def test_killed_session_loses_no_appended_outcome(tmp_path):
    code = (
        "import itertools, pathlib, sys\n"
        "from pytest_autoquant.manifests.records.outcome_log import append\n"
        "from pytest_autoquant.manifests.records.outcomes import KeptCase\n"
        "for i in itertools.count():\n"
        "    append(pathlib.Path(sys.argv[1]), KeptCase(case_id=str(i)))\n"
        "    print(i, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    printed = 5 + len(process.stdout.readlines())
    process.wait()
    cases = [outcome.case_id for outcome in read(tmp_path)]
    assert cases == [str(i) for i in range(len(cases))]
    assert len(cases) in (printed, printed + 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", f"{INVALID}Expecting value"),
        (b"\xff", f"{INVALID}'utf-8' codec can't decode"),
        (b'{"kind": "kept", "case_id": "c"}', "is not a logged outcome: it has no schema_version"),
        (b'{"schema_version": 2, "kind": "new"}', "was written by a newer version: schema 2"),
        (
            b'{"schema_version": 1, "case_id": "c"}',
            f"{INVALID}kind: must be one of skipped, failed, kept, structure, got",
        ),
        (b'{"schema_version": 1, "kind": ["kept"]}', f"{INVALID}kind: must be"),
        (b'{"schema_version": 1, "kind": "kept"}', f"{INVALID}case_id: Field"),
    ],
)
def test_malformed_line_is_refused_with_file_and_line(tmp_path, line, problem):
    path = tmp_path / OUTCOME_LOG
    path.write_bytes(LINE + line + b"\n" + LINE)
    with pytest.raises(RecordError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path}, line 2: {problem}")


def test_compact_replaces_the_log(tmp_path):
    append_all(tmp_path, (*ALL, *ALL))
    compact(tmp_path, (KEPT, SKIP))
    assert read(tmp_path) == (KEPT, SKIP)
    assert [path.name for path in tmp_path.iterdir()] == [OUTCOME_LOG]
    compact(tmp_path, ())
    assert read(tmp_path) == ()


def test_log_that_cannot_be_read_or_written_is_named(tmp_path):
    path = tmp_path / OUTCOME_LOG
    path.mkdir()
    with pytest.raises(WriteError, match=f"^{path}: cannot be written: Is a directory$"):
        append(tmp_path, SKIP)
    with pytest.raises(WriteError, match=f"^{path}: cannot be written: "):
        compact(tmp_path, ())
    with pytest.raises(RecordError, match=f"^{path}: cannot be read: Is a directory$"):
        read(tmp_path)
