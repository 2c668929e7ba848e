"""Hostile files: refused in our words or written inside the report folder, and shown as text."""

import copy
import json
import os
import re
import tempfile
import time
import unicodedata
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import AutoquantError, RecordError, UsageError
from pytest_autoquant.formats.effective_config import effective_config
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.manifests.session_summary import read_summary
from pytest_autoquant.reports.case_report import LAYERS_JSON, layer_report_markdown
from pytest_autoquant.reports.session_report import summary_markdown, terminal_lines
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.write import write_case

BUILTIN = load_vocabulary()
LAYER = "model.language_model.layers.0"
MLP = f"{LAYER}.mlp.gate_proj.quant_recipe"
LONGEST_MESSAGE = 5_000
OUR_PICTURES = r"(layer-map|grid-[a-z0-9._-]+)\.svg"

HOSTILE_NAMES = (
    *("../../x", "..", ".", "...", "/escaped", "//escaped", "~/x", "./..", "..\\..\\x", "C:\\x"),
    *(
        "CON",
        "nul",
        "com1.txt",
        "a\0b",
        "\0",
        "a\nb",
        "a/b/../../../c",
        "",
        " ",
        "\u2025",
        "\uff0f",
    ),
    *(".git", "-rf", "$(id)", "*", "x" * 300, "../" * 200, "é" * 300, "模" * 300, "%2e%2e%2f"),
    *("_autoquant_lm_quant_manifest.json", "layer-sensitivity-report.md"),
)
NAMED = (
    *(("model", "name"), ("case", "pair"), ("case", "weight"), ("case", "activation")),
    *(("case", "granularity"), ("case", "size")),
)
HOSTILE_TEXTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><a href=//evil>x</a>",
    "](javascript:x)",
    "x](javascript:x) [y](http://evil)",
    "![i](http://evil/i.png)",
    "<http://evil>",
    "[x]: http://evil",
    "\n\n[x]: http://evil\n\n[x]",
    "|",
    "a|b|c|",
    "\\|",
    "\\",
    "`",
    "``` `` `",
    "`<b>`",
    "\n| a | b |\n|---|---|\n",
    "\n# heading\n\n- item\n",
    "&lt;script&gt;&#60;b&#62;&#124;",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b2J\x85\x90",
    "a\x00b\x08c\x7f",
    "a\u2028b\u2029c\r\nd\x0be\x0cf",
    "<!--",
    "--> <b>",
    "x" * 2000,
)
JSON_NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-320", "-1e308", "1e308", "-0.0"),
    *("1" + "0" * 400, "9" * 4000, "9" * 4300, "9" * 5000, "-5", "0", "1.5", "1"),
    *('"nan"', '"inf"', '"1e999"', '"1"'),
)
JSON_TOKENS = (
    *JSON_NUMBERS,
    *("true", "null"),
    *('"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"\\u009b"'),
    *("[" * depth + "]" * depth for depth in (50, 254, 255, 400, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (50, 254, 255, 400, 100_000)),
    *('"' + "x" * 100_000 + '"', "[]", "{}", '{"":{}}', "[1", "/**/1", "'a'", "\x00", "\ufeff1"),
)

fuzz = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from((*HOSTILE_TEXTS, *HOSTILE_NAMES)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
hostile_texts = st.lists(
    st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=6), min_size=1, max_size=3
).map("".join)


class Verbatim(str):
    """JSON text that stands in a document as it is, valid or not."""

    __slots__ = ()


def encode(tree):
    """Write JSON, with ``Verbatim`` parts as they are."""
    if isinstance(tree, Verbatim):
        return str(tree)
    if isinstance(tree, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{encode(v)}" for k, v in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(encode, tree)) + "]"
    return json.dumps(tree)


def places(tree, path=()):
    """Every path into a JSON document but the document itself."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def put(tree, path, value):
    at(tree, path[:-1])[path[-1]] = value
    return tree


def renamed(tree, old, new):
    """Rename a group or layer wherever it is mentioned."""
    if isinstance(tree, dict):
        return {(new if k == old else k): renamed(v, old, new) for k, v in tree.items()}
    if isinstance(tree, list):
        return [renamed(value, old, new) for value in tree]
    return new if tree == old else tree


def like(value):
    """Values of the same kind, which a reader may well take."""
    if isinstance(value, str):
        return hostile_texts | st.sampled_from(HOSTILE_NAMES)
    if isinstance(value, bool) or value is None:
        return st.sampled_from((True, False, None, 0, "", "yes"))
    if isinstance(value, (int, float)):
        return st.sampled_from(JSON_NUMBERS).map(Verbatim)
    if isinstance(value, list):
        return st.sampled_from(([], value * 2, value[:1], value[::-1]))
    return st.sampled_from(({}, dict(list(value.items())[:1])))


@st.composite
def damages(draw, document):
    """JSON text: a document with up to three changes, half of them such that it may still load."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        path = draw(st.sampled_from(list(places(document))))
        holder, key, value = at(document, path[:-1]), path[-1], at(document, path)
        how = draw(st.sampled_from(("like", "like", "rename", "delete", "value", "token", "twice")))
        if how == "delete":
            del holder[key]
        elif how == "like":
            holder[key] = draw(like(value))
        elif how == "value":
            holder[key] = draw(json_values)
        elif how == "token":
            holder[key] = Verbatim(draw(st.sampled_from(JSON_TOKENS)))
        elif how == "twice" and isinstance(value, dict) and value:
            again = draw(st.sampled_from(list(value)))
            other = encode(draw(json_values))
            holder[key] = Verbatim(f"{encode(value)[:-1]},{json.dumps(again)}:{other}}}")
        elif how == "rename" and isinstance(key, str):
            document = renamed(document, key, draw(hostile_texts))
    return encode(document)


def strict(text):
    """Parse JSON that every language's parser accepts."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def controls(text):
    """The control characters and exotic line breaks in a text, newlines and tabs aside."""
    kinds = ("Cc", "Zl", "Zp")
    return {c for c in text if unicodedata.category(c) in kinds and c not in "\n\t"}


def load_or_refuse(content):
    """Load a manifest; None where it is refused in words that fit on a terminal."""
    try:
        return load_manifest(content, source="x")
    except RecordError as error:
        message = str(error)
    assert message.startswith("x: ")
    return None


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
        (outer / "a" / "sentinel.txt").parent.mkdir()
        (outer / "a" / "sentinel.txt").write_text("mine")
        root.mkdir(parents=True)
        before = listing(outer)
        yield root
        inside = f"{root.relative_to(outer).as_posix()}/"
        after = listing(outer)
        assert {k: v for k, v in after.items() if not k.startswith(inside)} == before
        assert all(path.resolve().is_relative_to(root.resolve()) for path in root.rglob("*"))


def write_everything(root, manifest):
    """Write and rebuild; what was written is strict JSON, readable again and printable."""
    path = write_case(root, manifest, None)
    results = rebuild(root)
    assert results.left_out == []
    for document in (path for path in root.rglob("*.json") if path.is_file()):
        strict(document.read_text(encoding="utf-8"))
    terminal_lines(results)
    return path


def document_of(manifest):
    return json.loads(dump_manifest(manifest))


# --- manifests that are no manifests


@settings(fuzz, max_examples=100)
@given(data=st.data())
def test_a_damaged_manifest_is_loaded_or_refused_in_our_words(manifest, data):
    load_or_refuse(data.draw(damages(document_of(manifest))))


@pytest.mark.parametrize("token", JSON_TOKENS, ids=lambda token: f"{token[:12]!a}x{len(token)}")
def test_no_token_in_any_place_is_a_traceback(manifest, token):
    document = document_of(manifest)
    one_of_each = {
        tuple("#" if isinstance(k, int) or "." in k else k for k in p): p for p in places(document)
    }
    for path in one_of_each.values():
        load_or_refuse(encode(put(copy.deepcopy(document), path, Verbatim(token))))
    load_or_refuse(token)


@settings(fuzz, max_examples=100)
@given(content=st.binary(max_size=200) | st.text(max_size=200) | json_values.map(json.dumps))
@example(content=b"\xef\xbb\xbf{}")
@example(content="\ufeff{}")
@example(content='{"schema_version": 1e999}')
@example(content='{"schema_version": ' + "9" * 4000 + "}")
@example(content='{"a":' * 100_000)
@example(content="\ud800")
@example(content='"\ud800"')
def test_a_file_of_anything_is_refused_in_our_words(content):
    assert load_or_refuse(content) is None


@settings(fuzz, max_examples=40)
@given(data=st.data())
def test_a_manifest_with_broken_bytes_is_loaded_or_refused_in_our_words(manifest, data):
    content = bytearray(dump_manifest(manifest).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    load_or_refuse(bytes(content))


@pytest.mark.parametrize("path", [(), ("case",), ("layers",), ("layers", f"{LAYER}.mlp.up_proj")])
@pytest.mark.parametrize("key", ["\x1b[2J\x9b", "a\nFAILED b", "k" * 100_000])
def test_a_refusal_repeats_no_control_character_and_no_novel(manifest, path, key):
    document = document_of(manifest)
    at(document, path)[key] = None
    with pytest.raises(RecordError) as caught:
        load_manifest(json.dumps(document), source="x")
    assert controls(str(caught.value)) == set()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < LONGEST_MESSAGE


def test_a_dangling_name_is_repeated_in_one_short_printable_line(manifest):
    for name in ("\x1b[2J\nx", "k" * 100_000):
        document = document_of(manifest)
        document["sensitivity_ranking"][0]["name"] = name
        with pytest.raises(RecordError) as caught:
            load_manifest(json.dumps(document), source="x")
        assert controls(str(caught.value)) == set()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < LONGEST_MESSAGE


# --- manifests that load


@settings(fuzz, max_examples=120)
@given(data=st.data())
def test_whatever_loads_is_written_inside_the_report_folder_and_read_again(manifest, data):
    loaded = load_or_refuse(data.draw(damages(document_of(manifest))))
    if loaded is not None:
        with guarded() as root:
            write_everything(root, loaded)


@pytest.mark.parametrize(
    "token", ["1e999", "-1e999", '"nan"', '"inf"', "1e-320", "1e308", "-1e308"]
)
@pytest.mark.parametrize(
    "path",
    [
        ("autoquant_state", "total_score"),
        ("autoquant_state", "score"),
        ("autoquant_state", "effective_bits"),
        ("autoquant_state", "minimum_effective_bits"),
        ("autoquant_state", "constraints", "effective_bits"),
        ("quantization", "effective_bits"),
        ("layer_sensitivity", MLP, "importance"),
        ("layer_sensitivity", MLP, "costs", 0),
        ("sensitivity_ranking", 0, "importance"),
        ("timing", "total"),
        ("scheme", "auto_quantize_bits"),
        ("run_config", "effective_bits"),
    ],
    ids=lambda path: ".".join(str(key).rpartition(".")[2] for key in path),
)
def test_a_number_out_of_range_is_refused_or_written_readably(manifest, path, token):
    loaded = load_or_refuse(encode(put(document_of(manifest), path, Verbatim(token))))
    if loaded is not None:
        with guarded() as root:
            write_everything(root, loaded)


def test_shares_that_overflow_one_by_one_or_in_sum_are_refused_or_written_readably(manifest):
    document = document_of(manifest)
    document["autoquant_state"]["total_score"] = 1.0
    for ranked in document["sensitivity_ranking"]:
        ranked["importance"] = 1e308
        document["layer_sensitivity"][ranked["name"]]["importance"] = 1e308
    loaded = load_or_refuse(json.dumps(document))
    if loaded is not None:
        with guarded() as root:
            write_everything(root, loaded)


@pytest.mark.parametrize("digits", [400, 4000, 4300])
@pytest.mark.parametrize("field", ["out_features", "in_features", "both"])
def test_a_layer_of_any_size_is_refused_or_written_readably(manifest, field, digits):
    document = document_of(manifest)
    for name in ("out_features", "in_features") if field == "both" else (field,):
        document["layers"][f"{LAYER}.mlp.up_proj"][name] = 10**digits - 1
    loaded = load_or_refuse(json.dumps(document))
    if loaded is not None:
        with guarded() as root:
            write_everything(root, loaded)


@pytest.mark.parametrize("depth", [100, 253, 254, 255, 300, 400])
@pytest.mark.parametrize(
    "path",
    [
        ("quantization", "algorithm"),
        ("quantization", "quant_granularity", "quant_cfg_overrides", "a"),
        ("quantization", "effective_quant_cfg", 0, "a"),
    ],
    ids=lambda path: str(path[1]),
)
def test_a_deeply_nested_config_is_refused_or_written_readably(manifest, path, depth):
    nested = Verbatim("[" * depth + "]" * depth)
    loaded = load_or_refuse(encode(put(document_of(manifest), path, nested)))
    if loaded is not None:
        with guarded() as root:
            write_everything(root, loaded)


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name[:12]))
def test_a_hostile_name_stays_in_the_report_folder(manifest, name):
    document = document_of(manifest)
    for paths in (*((path,) for path in NAMED), NAMED):
        for path in paths:
            document = put(copy.deepcopy(document), path, name)
        loaded = load_or_refuse(json.dumps(document))
        if loaded is None:
            continue
        with guarded() as root:
            path = write_everything(root, loaded)
            assert len(path.relative_to(root).parts) == 5


@settings(fuzz, max_examples=40)
@given(
    names=st.tuples(
        *[st.sampled_from(HOSTILE_NAMES) | st.text(alphabet="./\\\0\n~a-", max_size=9)] * len(NAMED)
    )
)
def test_hostile_names_together_stay_in_the_report_folder(manifest, names):
    document = document_of(manifest)
    for path, name in zip(NAMED, names, strict=True):
        put(document, path, name)
    loaded = load_or_refuse(json.dumps(document))
    if loaded is not None:
        with guarded() as root:
            path = write_everything(root, loaded)
            assert len(path.relative_to(root).parts) == 5


@pytest.mark.parametrize("name", ["../../../escaped", "..", "/escaped", "x" * 300, "\0"])
def test_hostile_layer_and_group_names_name_no_file(manifest, name):
    with guarded() as root:
        expected = write_everything(root, manifest)
        files = set(listing(root))
    document = document_of(manifest)
    for old in (MLP, f"{LAYER}.mlp.gate_proj"):
        document = renamed(document, old, f"{old}/{name}")
    with guarded() as root:
        write_everything(root, load_manifest(json.dumps(document), source="x"))
        assert set(listing(root)) == files
        assert expected.name in {path.name for path in root.rglob("*")}


@pytest.mark.parametrize(
    "model", ["tmp", "baseline", "summary.md", "summary.json", "index.html", "TMP"]
)
def test_a_model_named_like_a_file_or_folder_of_ours_is_reported(manifest, model):
    document = put(document_of(manifest), ("model", "name"), model)
    loaded = load_or_refuse(json.dumps(document))
    if loaded is not None:
        with guarded() as root:
            write_everything(root, loaded)
            assert len(strict((root / "summary.json").read_text())["cases"]) == 1


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_folder_whose_name_is_no_text_is_reported(render, manifest):
    with guarded() as root:
        folder = root / os.fsdecode(b"a\xffb")
        folder.mkdir()
        (folder / manifest.path.name).write_text(dump_manifest(manifest))
        results = rebuild(root)
        assert (len(results.cases), results.left_out) == (1, [])
        assert (folder / LAYERS_JSON).is_file()
        links = render((root / "summary.md").read_text()).links
        assert links == ["a%FFb/layer-sensitivity-report.md"]


def test_a_manifest_outside_that_is_linked_to_gets_no_report_beside_it(tmp_path, manifest):
    away, root = tmp_path / "away", tmp_path / "reports"
    away.mkdir()
    (away / manifest.path.name).write_text(dump_manifest(manifest))
    write_case(root, manifest, None)
    before = listing(away)
    (root / "folder").symlink_to(away)
    (root / manifest.path.name).symlink_to(away / manifest.path.name)
    rebuild(root)
    assert listing(away) == before


# --- earlier summaries


def summary(**changes):
    line = {"pair": "p", "granularity": "g", "status": "s", "reason": "", "digest": "d"}
    line |= {"format_name": "F", "effective_bits": 8.0}
    document = {"schema_version": 1, "cases": [], "skipped": [], "errors": []}
    document |= {"structure": [line], "gated": {}, "lost": [], "shard": None}
    return document | changes


@settings(fuzz, max_examples=40)
@given(data=st.data())
def test_a_damaged_summary_is_read_or_left_out(manifest, data):
    skip = {"case_id": "c", "status": "needs-cuda", "reason": "no CUDA"}
    error = {"case_id": "e", "problem": "out of memory"}
    content = data.draw(damages(summary(skipped=[skip], errors=[error], lost=["l"])))
    with guarded() as root:
        write_case(root, manifest, None)
        (root / "summary.json").write_text(content, encoding="utf-8", errors="surrogatepass")
        results = rebuild(root)
        assert len(results.cases) == 1
        strict((root / "summary.json").read_text())


@settings(fuzz, max_examples=40)
@given(content=st.binary(max_size=100) | json_values.map(lambda v: json.dumps(v).encode()))
def test_a_summary_of_anything_is_refused_in_our_words(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "summary.json"
        path.write_bytes(content)
        with pytest.raises(RecordError, match=r"summary\.json: "):
            read_summary(path)


@pytest.mark.parametrize("bits", ["NaN", "Infinity", "1e999", "-1e999", "9" * 4000, "9" * 5000])
def test_bits_that_json_cannot_hold_do_not_stop_a_rebuild(manifest, bits):
    document = summary()
    document["structure"][0]["effective_bits"] = Verbatim(bits)
    with guarded() as root:
        write_case(root, manifest, None)
        (root / "summary.json").write_text(encode(document))
        rebuild(root)
        strict((root / "summary.json").read_text())


# --- pages and the terminal


def hostile_documents(manifest, text):
    """The manifest as measured, alias and failed case, every free text replaced, and as it was."""
    for status in ("measured", "alias", "failed"):
        plain = document_of(manifest)
        plain["case"] |= {"status": status, "alias_of": "other", "problems": ["p", "q"]}
        hostile = copy.deepcopy(plain)
        hostile["case"] |= {"case_id": text, "alias_of": text, "notes": [text]}
        hostile["case"] |= {"problems": [text, text], "pair": text, "granularity": text}
        hostile["case"] |= {"weight": text, "activation": text, "size": text}
        plain["case"] |= {"notes": ["n"], "size": "odd"}
        for part in ("model", "dataset", "environment", "run_config", "scheme", "quantization"):
            for key, value in hostile[part].items():
                if isinstance(value, str) and key not in ("weights", "coverage_mode"):
                    hostile[part][key] = text
        hostile["environment"] |= {"host": text, "user": text, "cuda": text}
        for name in list(hostile["layers"]):
            hostile = renamed(hostile, name, name.replace(LAYER, f"{LAYER}{text}"))
        for name in list(hostile["layer_sensitivity"]):
            hostile = renamed(hostile, name, f"{text}{name}")
        yield tuple(load_manifest(json.dumps(d), source="x") for d in (plain, hostile))


def results_of(manifest, text):
    """A session with one of everything, all of it named ``text``."""
    line = case_result_of(manifest)
    cases = (
        line,
        *(
            replace(line, case_id=f"{text}{status}", status=status, problems=(text, text))
            for status in ("measured", "alias", "failed")
        ),
    )
    structure = StructureCheck(
        pair=text,
        granularity=text,
        status=text,
        reason=text,
        format_name=text,
        effective_bits=8.0,
        digest=text,
    )
    return SessionResults(
        cases={case.case_id: case for case in cases},
        skips={text: SkippedCase(case_id=text, status=text, reason=text)},
        errors={text: FailedCase(case_id=text, problem=text)},
        structures={(text, text): structure},
        gated={text: text},
        reruns={text: text},
        lost=(text,),
        left_out=[text],
        command=text,
        shard=text,
        write_errors=[text],
    )


def shape(page):
    return [[len(row) for row in table] for table in page.tables]


def check_pages(render, manifest, text):
    for plain, hostile in hostile_documents(manifest, text):
        pages = [
            tuple(layer_report_markdown(m, case_result_of(m)) for m in (plain, hostile)),
            *(
                (summary_markdown(mine), summary_markdown(theirs))
                for mine, theirs in [(results_of(plain, "plain"), results_of(hostile, text))]
            ),
        ]
        for expected, markdown in pages:
            wanted, page = render(expected), render(markdown)
            assert page.tags <= wanted.tags | {"code", "img"}
            assert all(re.fullmatch(OUR_PICTURES, source) for source in page.images)
            assert len(page.links) == len(wanted.links)
            assert all(link.endswith(LAYERS_JSON.replace(".json", ".md")) for link in page.links)
            assert not any(":" in link or link.startswith(("/", "..")) for link in page.links)
            assert shape(page) == shape(wanted)
            assert controls(markdown) == set()


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text[:14]))
def test_hostile_text_leaves_pages_as_they_are(render, manifest, text):
    check_pages(render, manifest, text)


@settings(fuzz, max_examples=12)
@given(text=hostile_texts.filter(lambda text: text.strip() and text.isprintable()))
def test_any_text_leaves_pages_as_they_are(render, manifest, text):
    check_pages(render, manifest, text)


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text[:14]))
def test_the_terminal_gets_one_line_each_and_no_control_character(manifest, text):
    for plain, hostile in hostile_documents(manifest, text):
        lines = terminal_lines(results_of(hostile, text))
        assert controls("".join(lines)) == set()
        assert not any("\n" in line for line in lines)
        assert len(lines) == len(terminal_lines(results_of(plain, "plain")))


# --- YAML

PAIR = {"name": "mine", "weight": "int4", "activation": "int8", "format_name": "MINE_CFG"}
OVERLAY = {
    "name": "mine",
    "quant_cfg_overrides": {
        "*weight_quantizer": {"block_sizes": {-1: 32, "type": "static", "scale_bits": [8, 0]}},
        "*input_quantizer": {"type": "dynamic", "axis": None},
    },
}
FOLDERS = {"quant_pair": PAIR, "quant_granularity": OVERLAY}
NAME = "name: {}\nweight: int4\nactivation: int8\n"
AXIS = "name: mine\nquant_cfg_overrides:\n  '*weight_quantizer': {{axis: {}}}\n"
SCALES = (
    "name: mine\nquant_cfg_overrides:\n"
    "  '*weight_quantizer': {{block_sizes: {{-1: 32, scale_bits: {}}}}}\n"
)
TAGS = (
    *("int", "float", "bool", "null", "str", "timestamp", "binary", "seq", "map", "set"),
    *("omap", "pairs", "merge", "value", "python/object/apply:os.system", "python/name:os.system"),
)
SCALARS = (
    *(
        "",
        "''",
        "'+'",
        "'-'",
        "x",
        "0x",
        "0b",
        "'0o'",
        "1_",
        "_",
        "1:2:3",
        "1:99:",
        ".inf",
        "-.INF",
    ),
    *(".nan", "2001-01-01", "2001-99-99", "9999-12-31T23:59:59 -23:59", "~", "[]", "{}", "[1]"),
    *("[a, b]", "{a: b}", "é", "a", "1" + ":1" * 200 + ".0", '"\\ud800"', '"\\x1b[2J"', "'|'", "="),
    *("<<", "*a", "&a", "&a [*a]", "? a", "!", "!!", "%", "@"),
)
UNPRINTABLE = ("0x" + "f" * 3600, "-0x" + "f" * 3600, "[0x" + "f" * 3600 + ", x]", "9" * 4301)


def load_or_refuse_yaml(content, kinds=tuple(FOLDERS)):
    """Load a file as a pair and as an overlay, and use what it defines.

    Asserts that a refusal is short and printable. Returns whether each was loaded.
    """
    data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    loaded = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / kind / "mine.yaml"
            path.parent.mkdir()
            path.write_bytes(data)
            try:
                vocabulary = load_vocabulary(Path(name))
            except UsageError as error:
                message = str(error)
                assert message.startswith(f"{path}: ")
                assert controls(message) == set()
                assert len(message) < 4 * len(data) + 1000
            else:
                resolve(vocabulary)
                loaded.append(kind)
    return loaded


def resolve(vocabulary):
    """Use every overlay that was added: what loads can be printed and identified."""
    added = set(vocabulary.granularities) - set(BUILTIN.granularities)
    for name in added:
        assert len(repr(vocabulary.granularities[name])) < LONGEST_MESSAGE
        try:
            config = effective_config(BUILTIN.pairs["wint4_aint8"], vocabulary.granularities[name])
        except AutoquantError:
            continue
        assert config.digest


def test_valid_files_are_loaded():
    assert load_or_refuse_yaml(yaml.safe_dump(PAIR)) == ["quant_pair"]
    assert load_or_refuse_yaml(yaml.safe_dump(OVERLAY)) == ["quant_granularity"]


@settings(fuzz, max_examples=100)
@given(
    content=st.binary(max_size=60)
    | st.text(max_size=60)
    | st.text(alphabet="name:weight-[]{}!&*<?|>%@`'\"#,\n \t\\x01~.=_", max_size=60)
)
def test_a_file_of_anything_is_no_vocabulary(content):
    assert load_or_refuse_yaml(content) == []


@settings(fuzz, max_examples=40)
@given(value=json_values | st.dictionaries(st.integers() | st.none(), st.integers(), max_size=3))
def test_a_yaml_document_of_anything_is_no_vocabulary(value):
    assert load_or_refuse_yaml(yaml.safe_dump(value, allow_unicode=True)) == []


@settings(fuzz, max_examples=100)
@given(data=st.data(), value=json_values | st.floats() | st.dates() | st.binary(max_size=4))
def test_a_damaged_definition_is_loaded_or_refused_in_our_words(data, value):
    document = copy.deepcopy(data.draw(st.sampled_from(list(FOLDERS.values()))))
    path = data.draw(st.sampled_from(list(places(document))))
    holder = at(document, path[:-1])
    if data.draw(st.booleans()):
        put(document, path, value)
    elif isinstance(holder, dict):
        key = value if value.__hash__ is not None else str(value)
        holder[key] = holder.pop(path[-1])
    load_or_refuse_yaml(yaml.safe_dump(document))


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("template", ["{}\n", NAME, AXIS], ids=["all", "name", "axis"])
def test_no_tag_on_anything_is_a_traceback(template, tag):
    assert find_tracebacks(template.format(f"!!{tag} {scalar}") for scalar in SCALARS) == []


@pytest.mark.parametrize("template", [NAME, AXIS, SCALES], ids=["name", "axis", "scales"])
def test_no_scalar_is_a_traceback(template):
    odd = ('"\\U99999999"', '"\\U00110000"', *UNPRINTABLE)
    assert find_tracebacks(template.format(scalar) for scalar in (*SCALARS, *odd)) == []


def find_tracebacks(texts):
    """The texts, shortened, that neither load nor are refused in our words, and what they raise."""
    found = []
    for text in texts:
        kind = "quant_granularity" if "quantizer" in text else "quant_pair"
        try:
            load_or_refuse_yaml(text, [kind])
        except Exception as error:
            found.append((text[-60:], type(error).__name__))
    return found


@pytest.mark.parametrize("tag", ["python/object/apply:os.system", "python/object/new:os.system"])
def test_no_tag_runs_a_command(tmp_path, tag):
    mark = tmp_path / "ran"
    assert load_or_refuse_yaml(f"name: !!{tag} ['touch {mark}']\n") == []
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        *(opening * 20_000 for opening in ("[", "{", "- ", "? ", "{a: ", "!!seq [", "&a [", "'")),
        "[" * 300 + "]" * 300,
        AXIS.format("[" * 300 + "]" * 300),
        SCALES.format("[" * 300 + "]" * 300),
        SCALES.format("[" * 90 + "]" * 90),
    ],
    ids=lambda text: f"{text[:8]}x{len(text)}",
)
def test_deep_nesting_is_refused_quickly(text):
    started = time.monotonic()
    load_or_refuse_yaml(text)
    assert time.monotonic() - started < 5


def bomb(levels):
    """A YAML list of ``10 ** levels`` leaves in ``levels`` short pieces."""
    parts = ["&a0 [x, x, x, x, x, x, x, x, x, x]"]
    parts += [f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return f"[{', '.join(parts)}]"


@pytest.mark.parametrize("key", [*PAIR, "experimental"])
def test_an_alias_bomb_in_a_pair_is_refused_briefly(key):
    text = "".join(f"{k}: {bomb(5) if k == key else v}\n" for k, v in (PAIR | {key: ""}).items())
    assert load_or_refuse_yaml(text) == []


@pytest.mark.parametrize("template", [AXIS, SCALES])
def test_an_alias_bomb_in_an_overlay_is_refused_briefly(template):
    load_or_refuse_yaml(template.format(bomb(5)))


def test_a_merge_bomb_is_refused_quickly():
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 8)]
    started = time.monotonic()
    assert load_or_refuse_yaml("\n".join(lines)) == []
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "text",
    [
        "&x {name: *x, weight: int4, activation: int8}",
        "&x [*x]",
        "? &x {a: *x}\n: 1\n",
        AXIS.format("&x [*x]"),
        SCALES.format("&x [*x]"),
        SCALES.format("&x {a: *x}"),
        "name: m\nquant_cfg_overrides:\n  '*weight_quantizer': &x {block_sizes: *x}\n",
        "name: m\nquant_cfg_overrides:\n"
        "  '*weight_quantizer': {block_sizes: &x {-1: 3, scale_bits: [*x]}}\n",
    ],
)
def test_a_document_that_holds_itself_is_refused(text):
    assert load_or_refuse_yaml(text) == []


@pytest.mark.parametrize(
    "scales", ["{a: b}", "2001-01-01", "!!binary aGk=", ".nan", "[[{a: 1}]]", "!!set {a}", "[]"]
)
def test_a_block_scale_that_is_no_scale_is_refused_or_can_be_used(scales):
    load_or_refuse_yaml(SCALES.format(scales))


@pytest.mark.parametrize(
    "text",
    [
        "1: a\n",
        "~: a\n",
        ".nan: a\n",
        "2001-01-01: a\n",
        "[a]: b\n",
        "{a: b}: c\n",
        "? [a, b]\n: c\n",
        "name: a\nname: b\n",
        "name: a\n'name': b\n",
        "name: a\n!!str name: b\n",
        SCALES.format("{1: a, 0x1: b}"),
        "---\nname: a\n---\nname: b\n",
        "%YAML 9.9\n---\nname: a\n",
        "=: 1\n",
        "<<: {name: a, weight: int4, activation: int8}\nname: b\n<<: {name: c}\n",
    ],
)
def test_odd_keys_are_refused_in_our_words(text):
    load_or_refuse_yaml(text)
