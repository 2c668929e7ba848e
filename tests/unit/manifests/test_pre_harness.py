"""Manifests from before the harness: what is read from them, and what is refused."""

import copy
import json
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.case_result import CaseResult, case_result_of
from pytest_autoquant.manifests.pre_harness import NOTE, read_any, read_sensitivity
from pytest_autoquant.manifests.sensitivity_manifest import Manifest, dump_manifest
from pytest_autoquant.regression.comparison import compare
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.write import write_case

AUTHOR = "/home/jane/secret-project"
NAME = "wint4_aint8_autoquant_lm_quant_manifest.json"
SUFFIX = ".quant_recipe"
NONE = "NONE(effective-bits: 16.0)"
INT4 = "CUSTOM_0(effective-bits: 4.0)"
VISION = "model.visual.blocks.0.attn.qkv"
QKV = "model.language_model.layers.0.self_attn.q_proj"
OUT = "model.language_model.layers.0.self_attn.o_proj"
GATE = "model.language_model.layers.0.mlp.gate_proj"
NEXT = "model.language_model.layers.1.mlp.gate_proj"
WEIGHTS = {QKV: 1024, OUT: 512, GATE: 2048, NEXT: 2048}
SCORES = {QKV: 0.25, OUT: 0.5, GATE: 4.0, NEXT: 0.125}


def searched(name, rank):
    score, weights = SCORES[name], WEIGHTS[name]
    return {
        "formats": [INT4, NONE],
        "scores": [score, 0.0],
        "costs": [weights / 4, float(weights)],
        "importance": score,
        "rank": rank,
    }


def old_manifest():
    """A small manifest of the old shape: ranks count from the mildest, vision groups included."""
    vision = {"formats": [NONE], "scores": [0.0], "costs": [768.0], "importance": 0.0, "rank": 1}
    groups = {f"{VISION}{SUFFIX}": vision}
    mildest_first = sorted(SCORES, key=SCORES.get)
    for name in SCORES:
        groups[f"{name}{SUFFIX}"] = searched(name, 2 + mildest_first.index(name))
    ranking = sorted(groups.items(), key=lambda item: item[1]["importance"])
    return {
        "scheme": {
            "name": "wint4_aint8_autoquant_lm",
            "auto_quantize_bits": 8.75,
            "auto_quantize_method": "gradient",
            "auto_quantize_score_size": 128,
            "coverage_mode": "lm_only",
            "coverage_fraction": 1.0,
            "quant_formats": ["INT4_WEIGHT_INT8_ACT_CFG"],
        },
        "model": {"id": f"{AUTHOR}/checkpoints/Toy-VL-1B"},
        "num_quantized_layers": 9,
        "layers": {name: {"quantized": True, "module_type": "QuantLinear"} for name in SCORES},
        "autoquant_state": {
            "keys": ["candidate_stats", "best", "constraints"],
            "constraints": {"effective_bits": 8.5},
            "score": 0.375,
            "is_satisfied": True,
        },
        "layer_sensitivity": groups,
        "sensitivity_ranking": [
            {"name": name, "importance": group["importance"]} for name, group in ranking
        ],
        "dataset": {
            "name": "old_captions",
            "size": "medium",
            "root": f"{AUTHOR}/data",
            "captions_path": f"{AUTHOR}/data/captions_medium.txt",
            "max_calib_samples": 128,
            "num_calib_samples": 120,
            "calib_seq_len": 512,
            "batch_size": 8,
            "num_calib_batches": 15,
        },
        "quantization": {
            "base_format_name": "OLD_CFG",
            "quant_granularity": {"name": "w_group64", "quant_cfg_overrides": {}},
        },
    }


def without(*path):
    document = old_manifest()
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return document


def changed(value, *path):
    document = old_manifest()
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return document


@pytest.fixture
def read(tmp_path):
    """Write a document into a report folder and read it."""

    def reading(document, below="old", name=NAME):
        path = tmp_path / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        path.write_bytes(content)
        return read_any(path, tmp_path)

    return reading


def refusal(read, document):
    with pytest.raises(RecordError) as caught:
        read(document)
    return str(caught.value)


def test_an_old_manifest_is_read_as_far_as_it_goes(read):
    case = read(old_manifest())
    assert isinstance(case, CaseResult)
    assert case.case_id == "toy-vl-1b/wint4_aint8/w_group64/medium/gradient"
    assert (case.model, case.pair, case.granularity) == ("toy-vl-1b", "wint4_aint8", "w_group64")
    assert (case.size, case.method, case.status) == ("medium", "gradient", "measured")
    assert (case.alias_of, case.experimental, case.problems) == (None, False, ())
    assert (case.format_name, case.effective_bits) == ("OLD_CFG", 4.0)
    assert case.total_score == 4.875
    assert case.manifest == f"old/{NAME}"
    assert case.notes == (NOTE,)
    assert case.is_old
    assert case.fingerprint is None


def test_ranks_are_flipped_so_that_one_is_the_most_sensitive(read):
    assert [(g.rank, g.name, g.score) for g in read(old_manifest()).groups] == [
        (1, GATE, 4.0),
        (2, OUT, 0.5),
        (3, QKV, 0.25),
        (4, NEXT, 0.125),
    ]


def test_the_recorded_ranks_are_not_trusted(read):
    document = old_manifest()
    for group in document["layer_sensitivity"].values():
        group["rank"] = 1
    assert read(document).groups == read(old_manifest()).groups


def test_groups_that_no_format_quantizes_are_left_out(read):
    case = read(old_manifest())
    assert VISION not in case.module_order
    assert VISION not in {group.name for group in case.groups}
    assert case.module_order == (QKV, OUT, GATE, NEXT)


def test_groups_are_placed_in_their_decoder_layers(read):
    found = {g.name: (g.layer, g.projection) for g in read(old_manifest()).groups}
    assert found == {
        QKV: (0, "self_attn.q_proj"),
        OUT: (0, "self_attn.o_proj"),
        GATE: (0, "mlp.gate_proj"),
        NEXT: (1, "mlp.gate_proj"),
    }


def test_weights_are_what_the_unquantized_format_costs_and_selections_are_unknown(read):
    case = read(old_manifest())
    assert {g.name: g.weights for g in case.groups} == WEIGHTS
    assert {g.selected for g in case.groups} == {None}
    assert case.selected_groups == 0
    assert case.groups[0].modules == ()


def test_the_selection_is_what_is_told(read):
    chosen = read(old_manifest()).selection
    assert (chosen.budget, chosen.score, chosen.is_satisfied) == (8.5, 0.375, True)
    assert (chosen.bits, chosen.minimum_bits) == (None, None)


def test_the_origin_says_what_is_unknown(read):
    assert read(old_manifest()).origin == {
        "model": "Toy-VL-1B",
        "captions": "old_captions, medium: 120 calibrated",
        "method": "gradient",
        "device": "unknown",
        "harness": "none: a manifest from before it",
        "ModelOpt": "unknown",
        "torch": "unknown",
        "transformers": "unknown",
    }


def test_no_path_of_the_author_is_repeated(read):
    case = read(old_manifest())
    shown = json.dumps([case.case_id, dict(case.origin), case.notes, case.manifest, case.model])
    assert "jane" not in shown
    assert "secret-project" not in shown
    assert "/home" not in shown


@pytest.mark.parametrize(
    "model_id",
    [
        "C:\\Users\\jane\\models\\Toy-VL-1B",
        f"{AUTHOR}/Toy-VL-1B/",
        "Qwen/Toy-VL-1B",
        "Toy-VL-1B",
    ],
)
def test_a_model_is_named_by_the_last_part_of_its_path(read, model_id):
    case = read(changed(model_id, "model", "id"))
    assert (case.model, case.origin["model"]) == ("toy-vl-1b", "Toy-VL-1B")


PARTS = ("scheme", "model", "dataset", "quantization", "autoquant_state", "sensitivity_ranking")
FIELDS = (
    *((part,) for part in (*PARTS, "layers", "num_quantized_layers")),
    *(("scheme", key) for key in old_manifest()["scheme"]),
    ("model", "id"),
    *(("dataset", key) for key in old_manifest()["dataset"]),
    *(("quantization", key) for key in old_manifest()["quantization"]),
    ("quantization", "quant_granularity", "name"),
    *(("autoquant_state", key) for key in old_manifest()["autoquant_state"]),
    ("autoquant_state", "constraints", "effective_bits"),
    *(
        ("layer_sensitivity", f"{GATE}{SUFFIX}", key)
        for key in ("scores", "costs", "importance", "rank")
    ),
)


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: ".".join(path[-2:]))
def test_every_field_but_the_groups_and_their_formats_may_be_missing(read, path):
    case = read(without(*path))
    assert [group.name for group in case.groups] == [GATE, OUT, QKV, NEXT]
    assert case.total_score == 4.875


def test_a_manifest_of_nothing_but_groups_says_that_the_rest_is_unknown(read):
    groups = {
        name: {"formats": [INT4, NONE], "importance": score} for name, score in SCORES.items()
    }
    case = read({"layer_sensitivity": groups})
    assert case.case_id == "unknown/wint4_aint8/unknown/unknown/unknown"
    assert (case.format_name, case.effective_bits, case.total_score) == ("unknown", 4.0, 4.875)
    assert {group.weights for group in case.groups} == {None}
    assert (case.selection.budget, case.selection.is_satisfied) == (None, None)
    assert case.origin["captions"] == "unknown, unknown: unknown"


def test_what_is_missing_is_taken_from_where_else_it_is_told(read):
    assert read(without("autoquant_state")).selection.budget == 8.75
    no_format = without("quantization", "base_format_name")
    assert read(no_format).format_name == "INT4_WEIGHT_INT8_ACT_CFG"
    assert read(without("scheme", "name")).pair == "wint4_aint8"
    no_overlay = without("quantization", "quant_granularity")
    assert read(no_overlay, below="x/a_per_token/medium").granularity == "a_per_token"
    assert read(no_overlay, below="x/a_per_token/large").granularity == "unknown"
    no_importance = without("layer_sensitivity", f"{GATE}{SUFFIX}", "importance")
    assert read(no_importance).groups[0].score == 4.0


def test_a_score_that_is_missing_leads_and_there_is_no_total(read):
    document = old_manifest()
    for key in ("importance", "scores"):
        del document["layer_sensitivity"][f"{NEXT}{SUFFIX}"][key]
    case = read(document)
    assert [(g.rank, g.name, g.score) for g in case.groups][:2] == [(1, NEXT, None), (2, GATE, 4.0)]
    assert case.total_score is None


@pytest.mark.parametrize(
    ("formats", "bits"),
    [
        (["CUSTOM_0(effective-bits: 4.25)", NONE], 4.25),
        (["FP8_DEFAULT_CFG", NONE], None),
        (["A(effective-bits: 4.2.5)", NONE], None),
        ([NONE, INT4], 4.0),
    ],
)
def test_the_bits_are_those_that_the_formats_name(read, formats, bits):
    groups = {name: {"formats": formats, "importance": 1.0} for name in SCORES}
    assert read(old_manifest() | {"layer_sensitivity": groups}).effective_bits == bits


def test_formats_that_disagree_tell_no_bits(read):
    document = old_manifest()
    document["layer_sensitivity"][f"{GATE}{SUFFIX}"]["formats"][0] = "B(effective-bits: 8.0)"
    assert read(document).effective_bits is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("layer_sensitivity",), []),
        (("layer_sensitivity", f"{GATE}{SUFFIX}"), 3),
        (("layer_sensitivity", f"{GATE}{SUFFIX}", "formats"), "INT4"),
        (("layer_sensitivity", f"{GATE}{SUFFIX}", "scores"), ["much"]),
        (("layer_sensitivity", f"{GATE}{SUFFIX}", "costs"), {"a": 1}),
        (("layer_sensitivity", f"{GATE}{SUFFIX}", "importance"), "high"),
        (("scheme",), "int4"),
        (("scheme", "name"), 4),
        (("scheme", "auto_quantize_bits"), "few"),
        (("scheme", "auto_quantize_method"), None),
        (("scheme", "quant_formats"), "INT4"),
        (("model",), None),
        (("model", "id"), ["a"]),
        (("dataset", "name"), 1),
        (("dataset", "size"), None),
        (("dataset", "num_calib_samples"), 1.5),
        (("quantization", "base_format_name"), {}),
        (("quantization", "quant_granularity"), "w_group64"),
        (("autoquant_state", "constraints"), 8),
        (("autoquant_state", "score"), "low"),
        (("autoquant_state", "is_satisfied"), "perhaps"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_a_field_of_another_type_is_refused_by_its_name(read, path, value):
    said = refusal(read, changed(value, *path))
    start = f"old/{NAME}: is not a valid manifest from before the harness: {'.'.join(path)}"
    assert said.startswith(start)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_refused(read, number):
    text = json.dumps(changed(123.456, "layer_sensitivity", f"{GATE}{SUFFIX}", "importance"))
    said = refusal(read, text.replace("123.456", number).encode())
    assert said.startswith(f"old/{NAME}: ")


def test_a_manifest_in_which_nothing_was_quantized_is_refused(read):
    groups = {f"{VISION}{SUFFIX}": old_manifest()["layer_sensitivity"][f"{VISION}{SUFFIX}"]}
    assert refusal(read, old_manifest() | {"layer_sensitivity": groups}) == (
        f"old/{NAME}: is not a valid manifest: no layer group was quantized"
    )


def test_a_newer_schema_is_refused(read):
    said = refusal(read, old_manifest() | {"schema_version": 99})
    assert said.startswith(f"old/{NAME}: written by a newer version: schema 99")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_half_written_file_is_refused(read, kept):
    content = json.dumps(old_manifest()).encode()
    assert refusal(read, content[: int(len(content) * kept)]).startswith(
        f"old/{NAME}: is not JSON: "
    )


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff", b'{"layers": {}}'])
def test_a_file_that_is_no_manifest_is_refused(read, content):
    assert refusal(read, content).startswith(f"old/{NAME}: is not ")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecordError) as caught:
        read_any(tmp_path / "a" / NAME, tmp_path)
    assert str(caught.value) == f"a/{NAME}: cannot be read: No such file or directory"


def test_a_manifest_of_this_harness_is_read_as_it_is(tmp_path, manifest):
    path = write_case(tmp_path, manifest)
    assert read_any(path, tmp_path) == manifest
    assert read_sensitivity(path, tmp_path) == case_result_of(manifest)


def test_a_word_in_a_note_does_not_make_an_old_manifest_a_new_one(read):
    document = old_manifest() | {"remark": 'no "schema_version" here'}
    assert isinstance(read(document), CaseResult)


def test_an_old_measurement_compares_by_rank_with_one_of_the_harness(read, scored):
    ours = case_result_of(scored({name: 2 * score for name, score in SCORES.items()}))
    found = compare(read(old_manifest()), ours)
    assert found.spearman == 1.0
    assert {(group.rank_before, group.rank_after) for group in found.groups} == {
        (rank, rank) for rank in range(1, 5)
    }
    assert (found.is_comparable, found.differing, found.selection_changes) == (False, (), ())


def test_old_manifests_are_shown_beside_ours_and_nothing_of_theirs_is_overwritten(
    tmp_path, read, manifest
):
    write_case(tmp_path, manifest)
    read(old_manifest())
    report = tmp_path / "old" / "layer-sensitivity-report.md"
    report.write_text("the author's own")
    results = rebuild(tmp_path)
    assert results.left_out == []
    assert set(results.cases) == {
        manifest.case.case_id,
        "toy-vl-1b/wint4_aint8/w_group64/medium/gradient",
    }
    assert report.read_text() == "the author's own"
    assert {path.name for path in (tmp_path / "old").iterdir()} == {NAME, report.name}


def test_old_manifests_of_one_case_are_told_apart_by_their_folders(tmp_path, read):
    for folder in ("a", "b", "c"):
        read(old_manifest(), below=folder)
    results = rebuild(tmp_path)
    one = "toy-vl-1b/wint4_aint8/w_group64/medium/gradient"
    assert list(results.cases) == [one, f"{one} (b)", f"{one} (c)"]
    assert [case.granularity for case in results.cases.values()] == [
        "w_group64",
        "w_group64 (b)",
        "w_group64 (c)",
    ]
    assert results.left_out == []


def test_of_old_manifests_of_one_case_in_one_folder_none_is_lost_silently(tmp_path, read):
    for folder, name in (("a", NAME), ("b", NAME), ("b", f"copy_{NAME}")):
        read(old_manifest(), below=folder, name=name)
    results = rebuild(tmp_path)
    shown = {PurePosixPath(case.manifest) for case in results.cases.values()}
    assert len(shown) + len(results.left_out) == 3


@pytest.mark.parametrize("folder", ["a-before-ours", "z-after-ours"])
def test_an_old_manifest_of_a_case_of_ours_displaces_it_nowhere(tmp_path, read, manifest, folder):
    write_case(tmp_path, manifest)
    document = changed("toy", "model", "id")
    document["quantization"]["quant_granularity"]["name"] = manifest.case.granularity
    document["dataset"]["size"] = manifest.case.size
    read(document, below=folder)
    results = rebuild(tmp_path)
    assert results.left_out == []
    assert sorted(case.is_old for case in results.cases.values()) == [False, True]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(tree, path=()):
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def read_or_refuse(folder):
    """What is said of the manifest in a folder, or the manifest."""
    try:
        return "", read_any(folder / NAME, folder)
    except RecordError as error:
        return str(error), None


@settings(deadline=None, max_examples=200)
@given(path=st.sampled_from(list(places(old_manifest()))), value=json_values)
def test_a_damaged_old_manifest_is_read_or_refused_in_our_words(tmp_path_factory, path, value):
    folder = tmp_path_factory.getbasetemp()
    (folder / NAME).write_text(json.dumps(changed(copy.deepcopy(value), *path)))
    said, found = read_or_refuse(folder)
    if found is None:
        assert said.startswith(f"{NAME}: ")
    else:
        assert [group.rank for group in found.groups] == list(range(1, len(found.groups) + 1))
        assert sorted(found.module_order) == sorted(group.name for group in found.groups)


def test_a_manifest_of_ours_is_no_old_one(tmp_path, manifest):
    path = tmp_path / NAME
    path.write_text(dump_manifest(manifest))
    assert isinstance(read_any(path, tmp_path), Manifest)
