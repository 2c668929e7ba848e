"""Manifests from before the harness: which fields are read, and which files are refused."""

import json

import pytest
from fuzz import at, fuzz, json_values, places, put
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.case_result import (
    CaseResult,
    CaseSource,
    Group,
    SelectionResult,
    case_result_of,
)
from pytest_autoquant.manifests.pre_harness import NOTE, read_any, read_sensitivity
from pytest_autoquant.regression.comparison import compare
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.write import write_case

AUTHOR = "/home/jane/secret-project"
CASE_ID = "toy-vl-1b/wint4_aint8/w_group64/medium/gradient"
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
    """A small old manifest: rank 1 is the least sensitive, and vision groups have ranks too."""
    vision = {"formats": [NONE], "scores": [0.0], "costs": [768.0], "importance": 0.0, "rank": 1}
    groups = {f"{VISION}{SUFFIX}": vision}
    least_sensitive_first = sorted(SCORES, key=SCORES.get)
    for name in SCORES:
        groups[f"{name}{SUFFIX}"] = searched(name, 2 + least_sensitive_first.index(name))
    ranking = sorted(groups.items(), key=lambda item: item[1]["importance"])
    return {
        "scheme": {
            "name": "wint4_aint8_autoquant_lm",
            "auto_quantize_bits": 8.75,
            "auto_quantize_method": "gradient",
            "coverage_mode": "lm_only",
            "quant_formats": ["INT4_WEIGHT_INT8_ACT_CFG"],
        },
        "model": {"id": f"{AUTHOR}/checkpoints/Toy-VL-1B"},
        "num_quantized_layers": 9,
        "layers": {name: {"quantized": True, "module_type": "QuantLinear"} for name in SCORES},
        "autoquant_state": {
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
            "num_calib_samples": 120,
            "batch_size": 8,
        },
        "quantization": {
            "base_format_name": "OLD_CFG",
            "quant_granularity": {"name": "w_group64", "quant_cfg_overrides": {}},
        },
    }


def without(*path):
    document = old_manifest()
    del at(document, path[:-1])[path[-1]]
    return document


def changed(value, *path):
    return put(old_manifest(), path, value)


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


# Read


def test_recorded_fields_are_read_and_paths_of_the_author_are_not_repeated(read):
    case = read(old_manifest())
    assert case == CaseResult(
        case_id=CASE_ID,
        model="toy-vl-1b",
        pair="wint4_aint8",
        granularity="w_group64",
        size="medium",
        method="gradient",
        notes=(NOTE,),
        format_name="OLD_CFG",
        effective_bits=4.0,
        groups=tuple(
            Group(
                name=name,
                score=SCORES[name],
                rank=rank,
                modules=(),
                weights=WEIGHTS[name],
                selected=None,
            )
            for rank, name in enumerate((GATE, OUT, QKV, NEXT), start=1)
        ),
        module_order=(QKV, OUT, GATE, NEXT),
        total_score=4.875,
        selection=SelectionResult(budget=8.5, score=0.375, is_satisfied=True),
        source=CaseSource(
            manifest=f"old/{NAME}",
            origin={
                "model": "Toy-VL-1B",
                "captions": "old_captions, medium: 120 calibrated",
                "method": "gradient",
                "device": "unknown",
                "harness": "none: a manifest from before it",
                "ModelOpt": "unknown",
                "torch": "unknown",
                "transformers": "unknown",
            },
        ),
    )
    assert case.is_old


def test_recorded_ranks_are_not_used(read):
    document = old_manifest()
    for group in document["layer_sensitivity"].values():
        group["rank"] = 1
    assert read(document).groups == read(old_manifest()).groups


@pytest.mark.parametrize(
    "model_id",
    ["C:\\Users\\jane\\models\\Toy-VL-1B", f"{AUTHOR}/Toy-VL-1B/", "Qwen/Toy-VL-1B", "Toy-VL-1B"],
)
def test_model_is_named_by_the_last_part_of_its_path(read, model_id):
    case = read(changed(model_id, "model", "id"))
    assert (case.model, case.origin["model"]) == ("toy-vl-1b", "Toy-VL-1B")


def test_every_field_but_the_groups_and_their_formats_is_optional(read):
    for path in places(old_manifest()):
        if path[0] != "layer_sensitivity" or path[-1] in ("scores", "costs", "importance", "rank"):
            case = read(without(*path))
            assert [group.name for group in case.groups] == [GATE, OUT, QKV, NEXT], path
            assert case.total_score == 4.875, path


def test_manifest_with_groups_only_has_unknown_fields(read):
    groups = {
        name: {"formats": [INT4, NONE], "importance": score} for name, score in SCORES.items()
    }
    case = read({"layer_sensitivity": groups})
    assert case.case_id == "unknown/wint4_aint8/unknown/unknown/unknown"
    assert (case.format_name, case.effective_bits, case.total_score) == ("unknown", 4.0, 4.875)
    assert {group.weights for group in case.groups} == {None}
    assert (case.selection.budget, case.selection.is_satisfied) == (None, None)
    assert case.origin["captions"] == "unknown, unknown: unknown"


def test_missing_fields_are_taken_from_other_fields_and_folders(read):
    assert read(without("autoquant_state")).selection.budget == 8.75
    no_format = without("quantization", "base_format_name")
    assert read(no_format).format_name == "INT4_WEIGHT_INT8_ACT_CFG"
    assert read(without("scheme", "name")).pair == "wint4_aint8"
    no_overlay = without("quantization", "quant_granularity")
    assert read(no_overlay, below="x/a_per_token/medium").granularity == "a_per_token"
    assert read(no_overlay, below="x/a_per_token/large").granularity == "unknown"
    no_importance = without("layer_sensitivity", f"{GATE}{SUFFIX}", "importance")
    assert read(no_importance).groups[0].score == 4.0


def test_group_without_a_score_is_first_and_there_is_no_total(read):
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
def test_effective_bits_are_those_in_the_formats_names(read, formats, bits):
    groups = {name: {"formats": formats, "importance": 1.0} for name in SCORES}
    assert read(old_manifest() | {"layer_sensitivity": groups}).effective_bits == bits


@pytest.mark.parametrize(
    ("pair", "config", "recorded", "bits"),
    [
        ("wint8_aint4", "X_CFG", 4.0, 8.0),
        ("wfp8_aint4", "X_CFG", 4.0, 8.0),
        ("wfp16_afp8", "X_CFG", 8.0, 16.0),
        ("wint8_aint8", "X_CFG", 8.0, 8.0),
        ("wnvfp4_afp8", "X_CFG", 4.0, 4.0),
        ("wfp4_afp8", "X_CFG", 4.25, 4.25),
        ("mine", "INT8_WEIGHT_INT4_ACT_CFG", 4.0, 8.0),
        ("mine", "W4A8_NVFP4_FP8_CFG", 4.0, 4.0),
        ("mine", "CUSTOM_CFG", 4.0, 4.0),
    ],
)
def test_old_bits_below_those_of_the_weights_are_corrected_with_a_note(
    read, pair, config, recorded, bits
):
    document = old_manifest()
    document["scheme"] |= {"name": f"{pair}_autoquant_lm", "quant_formats": [config]}
    document["quantization"]["base_format_name"] = config
    formats = [f"{config}(effective-bits: {recorded})", NONE]
    document["layer_sensitivity"] = {
        name: {"formats": formats, "importance": 1.0} for name in SCORES
    }
    document["sensitivity_ranking"] = []
    case = read(document)
    assert case.effective_bits == bits
    assert [f"the weights store {bits:g}" in note for note in case.notes[1:]] == (
        [True] if bits != recorded else []
    )


def test_effective_bits_are_unknown_if_formats_differ(read):
    document = old_manifest()
    document["layer_sensitivity"][f"{GATE}{SUFFIX}"]["formats"][0] = "B(effective-bits: 8.0)"
    assert read(document).effective_bits is None


def test_old_manifest_with_schema_version_in_a_text_is_still_old(read):
    assert isinstance(read(old_manifest() | {"remark": 'no "schema_version" here'}), CaseResult)


def test_manifest_of_this_harness_is_read_as_a_manifest(tmp_path, manifest):
    path = write_case(tmp_path, manifest)
    assert read_any(path, tmp_path) == manifest
    assert read_sensitivity(path, tmp_path) == case_result_of(manifest)


# Refused


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("layer_sensitivity",), []),
        (("layer_sensitivity", f"{GATE}{SUFFIX}", "formats"), "INT4"),
        (("layer_sensitivity", f"{GATE}{SUFFIX}", "scores"), ["much"]),
        (("scheme", "auto_quantize_method"), None),
        (("model", "id"), ["a"]),
        (("dataset", "num_calib_samples"), 1.5),
        (("quantization", "quant_granularity"), "w_group64"),
        (("autoquant_state", "is_satisfied"), "perhaps"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_field_of_another_type_is_named(read, path, value):
    message = refusal(read, changed(value, *path))
    start = f"old/{NAME}: is not a valid manifest from before the harness: {'.'.join(path)}"
    assert message.startswith(start)


@pytest.mark.parametrize("path", [("layers",), ("dataset", "batch_size")])
def test_field_that_is_not_read_may_have_any_type(read, path):
    assert read(changed("many", *path)).total_score == 4.875


def test_ranking_with_other_scores_is_refused_with_both_values(read):
    (first, *_) = [r for r in old_manifest()["sensitivity_ranking"] if r["name"].startswith(GATE)]
    place = old_manifest()["sensitivity_ranking"].index(first)
    message = refusal(read, changed(99.5, "sensitivity_ranking", place, "importance"))
    assert f"group '{GATE}{SUFFIX}': importance in layer_sensitivity is {first['importance']}" in (
        message
    )
    assert "sensitivity_ranking says 99.5" in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_number_that_is_not_finite_is_refused(read, number):
    text = json.dumps(changed(123.456, "layer_sensitivity", f"{GATE}{SUFFIX}", "importance"))
    message = refusal(read, text.replace("123.456", number).encode())
    assert message.startswith(f"old/{NAME}: ")


def test_manifest_without_a_quantized_group_is_refused(read):
    groups = {f"{VISION}{SUFFIX}": old_manifest()["layer_sensitivity"][f"{VISION}{SUFFIX}"]}
    assert refusal(read, old_manifest() | {"layer_sensitivity": groups}) == (
        f"old/{NAME}: is not a valid manifest from before the harness: no layer group was quantized"
    )


def test_newer_schema_is_refused(read):
    message = refusal(read, old_manifest() | {"schema_version": 99})
    assert message.startswith(f"old/{NAME}: was written by a newer version: schema 99")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", json.dumps(old_manifest()).encode()[:-9]], ids=len
)
def test_file_that_is_not_a_manifest_is_refused(read, content):
    assert refusal(read, content).startswith(f"old/{NAME}: is not ")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(RecordError) as caught:
        read_any(tmp_path / "a" / NAME, tmp_path)
    assert str(caught.value) == f"a/{NAME}: cannot be read: No such file or directory"


@settings(fuzz, max_examples=60)
@given(path=st.sampled_from(list(places(old_manifest()))), value=json_values)
def test_damaged_old_manifest_is_read_or_refused(tmp_path_factory, path, value):
    folder = tmp_path_factory.getbasetemp()
    (folder / NAME).write_text(json.dumps(changed(value, *path)))
    message = None
    try:
        case = read_any(folder / NAME, folder)
    except RecordError as error:
        message = str(error)
    if message is not None:
        assert message.startswith(f"{NAME}: is not ")
        return
    assert [group.rank for group in case.groups] == list(range(1, len(case.groups) + 1))
    assert sorted(case.module_order) == sorted(group.name for group in case.groups)


# Compared and shown


def test_old_result_compares_by_rank_with_a_result_of_this_harness(read, scored):
    ours = case_result_of(scored({name: 2 * score for name, score in SCORES.items()}))
    found = compare(read(old_manifest()), ours)
    assert found.spearman == 1.0
    assert {(group.rank_before, group.rank_after) for group in found.groups} == {
        (rank, rank) for rank in range(1, 5)
    }
    assert (found.is_comparable, found.differing, found.selection_changes) == (False, (), ())


def test_rebuild_shows_old_manifests_and_overwrites_nothing_beside_them(tmp_path, read, manifest):
    write_case(tmp_path, manifest)
    read(old_manifest())
    report = tmp_path / "old" / "layer-sensitivity-report.md"
    report.write_text("the author's own")
    results = rebuild(tmp_path)
    assert results.left_out == []
    assert set(results.cases) == {manifest.case.case_id, CASE_ID}
    assert report.read_text() == "the author's own"
    assert {path.name for path in (tmp_path / "old").iterdir()} == {NAME, report.name}


def test_old_manifests_of_one_case_get_their_folder_in_the_name(tmp_path, read):
    for folder in ("a", "b", "c"):
        read(old_manifest(), below=folder)
    results = rebuild(tmp_path)
    assert results.left_out == []
    assert {name: case.granularity for name, case in results.cases.items()} == {
        f"{CASE_ID} (a)": "w_group64 (a)",
        f"{CASE_ID} (b)": "w_group64 (b)",
        f"{CASE_ID} (c)": "w_group64 (c)",
    }


@pytest.mark.parametrize("folder", ["a-before-ours", "z-after-ours"])
def test_old_manifest_of_a_current_case_is_shown_beside_it(tmp_path, read, manifest, folder):
    write_case(tmp_path, manifest)
    document = changed("toy", "model", "id")
    document["quantization"]["quant_granularity"]["name"] = manifest.case.granularity
    document["dataset"]["size"] = manifest.case.size
    read(document, below=folder)
    results = rebuild(tmp_path)
    assert results.left_out == []
    assert sorted(case.is_old for case in results.cases.values()) == [False, True]
