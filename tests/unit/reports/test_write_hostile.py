"""Reports of hostile manifests and summaries: strict, readable, and inside the report folder."""

import copy
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import structure_check, with_scores
from fuzz import (
    HOSTILE_NAMES,
    Verbatim,
    damages,
    encode,
    fuzz,
    hostile_texts,
    put,
    renamed,
    strict,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.manifests.records.session_summary import SessionSummary, dump_summary
from pytest_autoquant.reports.markdown.case_report import LAYERS_JSON
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.terminal_report import terminal_lines
from pytest_autoquant.reports.write import write_case

LAYER = "model.language_model.layers.0"

#: Fields that decide where a case's files lie.
NAMED = (
    ("model", "name"),
    ("case", "pair"),
    ("case", "weight"),
    ("case", "activation"),
    ("case", "granularity"),
    ("case", "size"),
)
NUMBER = ("autoquant_state", "minimum_effective_bits")


@pytest.fixture
def document(manifest):
    return json.loads(dump_manifest(manifest))


def load(document):
    return load_manifest(encode(document), source="x")


def with_copies(document):
    """Repeat the case's names where a manifest has them a second time."""
    put(document, ("dataset", "size"), document["case"]["size"])
    overlay = document["case"]["granularity"]
    return put(document, ("quantization", "quant_granularity", "name"), overlay)


def listing(folder):
    """Everything below a folder, by path: the bytes of files, None for folders."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


@contextmanager
def guarded():
    """A report folder deep in a guarded one, in which nothing else may change."""
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        root = outer / "a" / "b" / "reports"
        root.mkdir(parents=True)
        (outer / "a" / "sentinel.txt").write_text("mine")
        before = listing(outer)
        yield root
        inside = f"{root.relative_to(outer).as_posix()}/"
        after = listing(outer)
        assert {k: v for k, v in after.items() if not k.startswith(inside)} == before
        assert all(path.resolve().is_relative_to(root.resolve()) for path in root.rglob("*"))


def check_written(manifest):
    """Write and rebuild; what was written is strict JSON, readable again and printable."""
    with guarded() as root:
        path = write_case(root, manifest)
        results = rebuild(root)
        assert results.left_out == []
        assert list(results.cases) == [manifest.case.case_id]
        for written in (path for path in root.rglob("*.json") if path.is_file()):
            strict(written.read_text(encoding="utf-8"))
        assert terminal_lines(results)[0].startswith("1 measured, ")
        assert len(path.relative_to(root).parts) == 5
        return set(listing(root))


@pytest.mark.parametrize("token", ["1e-320", "1e308", "-1e308"])
def test_extreme_numbers_are_written_readably(manifest, document, token):
    check_written(load(put(document, NUMBER, Verbatim(token))))
    check_written(with_scores(manifest, {"a": float(token), "b": 1e-300}))


def test_nested_config_is_written_readably(document):
    nested = Verbatim("[" * 250 + "]" * 250)
    check_written(load(put(document, ("quantization", "algorithm"), nested)))


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name[:12]))
def test_hostile_name_stays_in_the_report_folder(document, name):
    for path in NAMED:
        put(document, path, name)
    check_written(load(with_copies(document)))


@pytest.mark.slow
@settings(fuzz, max_examples=15)
@given(
    names=st.tuples(
        *[st.sampled_from(HOSTILE_NAMES) | st.text(alphabet="./\\\0\n~a-", max_size=9)] * len(NAMED)
    ),
    text=hostile_texts,
)
def test_hostile_names_and_texts_together_stay_in_the_report_folder(document, names, text):
    changed = copy.deepcopy(document)
    for path, name in zip(NAMED, names, strict=True):
        put(changed, path, name)
    changed["case"] |= {"notes": [text], "alias_of": text}
    changed["environment"] |= {"host": text, "device_name": text}
    check_written(load(with_copies(changed)))


@pytest.mark.parametrize("name", ["../../../escaped", "/escaped", "x" * 300, "\0"])
def test_layer_and_group_names_name_no_file(manifest, document, name):
    linear = f"{LAYER}.mlp.gate_proj"
    for old in (f"{linear}.quant_recipe", linear):
        document = renamed(document, old, f"{old}/{name}")
    assert check_written(load(document)) == check_written(manifest)


@pytest.mark.parametrize("model", ["tmp", "baseline", "summary.json", "TMP"])
def test_model_named_like_a_file_or_folder_of_ours_is_reported(document, model):
    check_written(load(put(document, ("model", "name"), model)))


def test_folder_name_that_is_not_text_is_reported(render, manifest):
    with guarded() as root:
        folder = root / os.fsdecode(b"a\xffb")
        folder.mkdir()
        (folder / manifest.path.name).write_text(dump_manifest(manifest))
        results = rebuild(root)
        assert (len(results.cases), results.left_out) == (1, [])
        assert (folder / LAYERS_JSON).is_file()
        links = render((root / "summary.md").read_text()).links
        assert links == ["a%FFb/layer-sensitivity-report.md"]


def test_linked_manifest_outside_gets_no_report_beside_it(tmp_path, manifest):
    outside, root = tmp_path / "outside", tmp_path / "reports"
    outside.mkdir()
    (outside / manifest.path.name).write_text(dump_manifest(manifest))
    write_case(root, manifest)
    before = listing(outside)
    (root / "folder").symlink_to(outside)
    (root / manifest.path.name).symlink_to(outside / manifest.path.name)
    rebuild(root)
    assert listing(outside) == before


@pytest.fixture(scope="module")
def summary():
    """A summary of outcomes that have no manifest, as parsed JSON."""
    written = SessionSummary(
        cases=(),
        skipped=(SkippedCase(case_id="c", status="needs-cuda", reason="no CUDA"),),
        errors=(FailedCase(case_id="e", problem="out of memory"),),
        structure=(structure_check(),),
        lost=("l",),
    )
    return json.loads(dump_summary(written))


def check_rebuilt(manifest, content):
    """Rebuild beside a damaged summary, which is taken over as a whole or left out by name."""
    with guarded() as root:
        write_case(root, manifest)
        (root / "summary.json").write_text(content, encoding="utf-8", errors="surrogatepass")
        results = rebuild(root)
        assert list(results.cases) == [manifest.case.case_id]
        if results.left_out:
            (reason,) = results.left_out
            assert reason.startswith("summary.json: ")
            assert (results.skips, results.errors, results.structures) == ({}, {}, {})
        assert len(strict((root / "summary.json").read_text())["cases"]) == 1
        return results


@settings(fuzz, max_examples=8)
@given(data=st.data())
def test_damaged_summary_is_taken_over_or_left_out(manifest, summary, data):
    check_rebuilt(manifest, data.draw(damages(summary)))


@pytest.mark.parametrize("bits", ["NaN", "-1e999", "9" * 4000, "9" * 5000])
def test_summary_with_bits_that_are_not_finite_is_left_out(manifest, summary, bits):
    damaged = put(copy.deepcopy(summary), ("structure", 0, "effective_bits"), Verbatim(bits))
    assert len(check_rebuilt(manifest, encode(damaged)).left_out) == 1
