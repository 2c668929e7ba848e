"""Hostile files: refused in our words or written inside the report folder, and shown as text."""

import copy
import json
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fuzz import (
    HOSTILE_TEXTS,
    LONGEST_MESSAGE,
    at,
    controls,
    fuzz,
    hostile_texts,
    json_values,
    places,
    put,
    renamed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import AutoquantError, UsageError
from pytest_autoquant.formats.effective_config import effective_config
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.reports.case_report import LAYERS_JSON, layer_report_markdown
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.session_report import summary_markdown, terminal_lines
from pytest_autoquant.reports.session_results import SessionResults

BUILTIN = load_vocabulary()
LAYER = "model.language_model.layers.0"
MLP = f"{LAYER}.mlp.gate_proj.quant_recipe"
OUR_PICTURES = r"(layer-map|grid-[a-z0-9._-]+)\.svg"


def document_of(manifest):
    return json.loads(dump_manifest(manifest))


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
                (summary_markdown(report_model(mine)), summary_markdown(report_model(theirs)))
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
