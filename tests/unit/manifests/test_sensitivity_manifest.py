"""The sensitivity manifest: its keys, its references, and which values load unchanged."""

import copy
import json

import pytest
from builders import changed, with_check, with_whole
from fuzz import (
    HOSTILE_NAMES,
    Verbatim,
    at,
    check_message,
    encode,
    fuzz,
    hostile_texts,
    put,
    strict,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    dump_manifest,
    load_manifest,
    read_manifest,
)

LAYER = "model.language_model.layers.0"
MLP = f"{LAYER}.mlp.gate_proj.quant_recipe"
UP = f"{LAYER}.mlp.up_proj"
INVALID = "x: is not a valid manifest: "

#: String fields that may hold any text.
TEXTS = (
    ("case", "case_id"),
    ("case", "pair"),
    ("case", "problems", 0),
    ("model", "id"),
    ("dataset", "name"),
    ("quantization", "effective_quantizer_summary", "weight_quantizer"),
    ("environment", "host"),
    ("run_config", "engine_reason"),
)
#: Fields of any JSON type.
ANY_TYPE = (
    ("quantization", "algorithm"),
    ("quantization", "quant_granularity", "quant_cfg_overrides", "a"),
    ("quantization", "effective_quant_cfg", 0, "a"),
)


@pytest.fixture
def document(manifest):
    """A manifest as parsed JSON, with a problem so that every text field has a value."""
    failed = changed(manifest, "case", status="failed", problems=("out of memory",))
    return json.loads(dump_manifest(failed))


def short(text):
    return ascii(text[:12])


def dotted(path):
    return ".".join(str(key).rpartition(".")[2] for key in path)


def refusal(content):
    """Return why a manifest is refused, checked to fit on a terminal."""
    with pytest.raises(RecordError) as caught:
        load_manifest(content, source="x")
    return check_message(caught.value)


def reloaded(document, path):
    """Return a field's value after the manifest was read and written again."""
    loaded = load_manifest(encode(document), source="x")
    return at(json.loads(dump_manifest(loaded)), path)


def test_keys_are_stable(manifest):
    document = strict(dump_manifest(manifest))
    assert " ".join(document) == (
        "schema_version case scheme model dataset quantization num_quantized_layers layers "
        "layer_sensitivity expert_tokens sensitivity_ranking autoquant_state environment timing "
        "memory run_config measured_at score_check score_not_checked "
        "whole_model whole_model_not_measured"
    )
    assert " ".join(document["quantization"]) == (
        "base_format_name base_is_modelopt_preset quant_granularity effective_quant_cfg "
        "effective_quantizer_summary algorithm effective_bits active_bits "
        "nominal_effective_bits digest"
    )
    assert list(document["quantization"]["quant_granularity"]) == ["name", "quant_cfg_overrides"]
    assert {"constraints", "score", "is_satisfied"} <= set(document["autoquant_state"])


def test_non_finite_number_is_written_as_null(manifest):
    text = dump_manifest(
        changed(manifest, "autoquant_state", score=float("nan"), total_score=float("inf"))
    )
    state = strict(text)["autoquant_state"]
    assert (state["score"], state["total_score"]) == (None, None)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(RecordError) as caught:
            read_manifest(path)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("name", ["gone", "\x1b[2J\nx", "k" * 100_000], ids=short)
@pytest.mark.parametrize(
    ("path", "kind", "owner"),
    [
        (("sensitivity_ranking", 0, "name"), "group", "layer_sensitivity"),
        (("layer_sensitivity", MLP, "module_names", 0), "layer", "layers"),
    ],
    ids=["group", "layer"],
)
def test_name_without_a_record_is_refused(document, path, kind, owner, name):
    message = refusal(json.dumps(put(document, path, name)))
    assert message.startswith(f"{INVALID}{path[0]} names {kind} ")
    if name == "gone":
        assert message.endswith(f" 'gone', which {owner} does not have")


@pytest.mark.parametrize(("digits", "is_json"), [(20, True), (4000, True), (5000, False)])
@pytest.mark.parametrize("fields", [["out_features"], ["in_features", "out_features"]])
def test_layer_of_impossible_size_is_refused(document, fields, digits, is_json):
    for name in fields:
        document["layers"][UP][name] = Verbatim("9" * digits)
    problem = f"{INVALID}layer '{UP}': out_features x in_features must be below 2**63"
    assert refusal(encode(document)).startswith(problem if is_json else "x: is not JSON: ")


@pytest.mark.parametrize("path", ANY_TYPE, ids=dotted)
def test_config_loads_unless_it_is_too_deep_to_be_written_again(document, path):
    nested = Verbatim("[" * 250 + "]" * 250)
    assert json.dumps(reloaded(put(document, path, nested), path)) == nested
    too_deep = Verbatim("[" * 300 + "]" * 300)
    assert refusal(encode(put(document, path, too_deep))).startswith(INVALID)


@pytest.mark.parametrize("token", ["1e-320", "1e308", "-1e308"])
@pytest.mark.parametrize(
    "path",
    [
        ("autoquant_state", "minimum_effective_bits"),
        ("layer_sensitivity", MLP, "costs", 0),
    ],
    ids=dotted,
)
def test_extreme_finite_number_loads(document, path, token):
    assert reloaded(put(document, path, Verbatim(token)), path) == float(token)


@settings(fuzz, max_examples=40)
@given(data=st.data())
def test_any_text_loads_unchanged(document, data):
    path = data.draw(st.sampled_from(TEXTS))
    text = data.draw(hostile_texts | st.sampled_from(HOSTILE_NAMES))
    assert reloaded(put(copy.deepcopy(document), path, text), path) == text


OUTPUT = f"{LAYER}.self_attn.o_proj.quant_recipe"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("layer_sensitivity", MLP, "importance"),
            9.0,
            [f"group '{MLP}'", "layer_sensitivity is 9.0", "sensitivity_ranking says 6.0"],
        ),
        (
            ("sensitivity_ranking", 0, "importance"),
            9.0,
            [f"group '{MLP}'", "layer_sensitivity is 6.0", "sensitivity_ranking says 9.0"],
        ),
        (
            ("layer_sensitivity", MLP, "scores", 0),
            9.0,
            [f"group '{MLP}'", "importance is 6.0", "first of its scores says 9.0"],
        ),
        (("layer_sensitivity", OUTPUT, "rank"), 1, [f"group '{OUTPUT}'", "is 1", "says 3"]),
        (("sensitivity_ranking", 2, "name"), MLP, ["sensitivity_ranking says 1.0"]),
        (("num_quantized_layers",), 5, ["is 6", "num_quantized_layers says 5"]),
        (("layers", UP, "group"), OUTPUT, [f"layer '{UP}'", f"is '{MLP}'", f"says '{OUTPUT}'"]),
        (("layers", UP, "quantized"), False, ["is 5", "num_quantized_layers says 6"]),
        (("autoquant_state", "total_score"), 15.0, ["is 10.0", "total_score says 15.0"]),
        (("autoquant_state", "total_score"), None, ["is 10.0", "total_score says None"]),
        (("autoquant_state", "score"), 1.0, ["is 7.0", "autoquant_state.score says 1.0"]),
        (("autoquant_state", "effective_bits"), 7.0, ["autoquant_state.effective_bits says 7.0"]),
        (("quantization", "effective_bits"), 4.0, ["is 4.125", "effective_bits says 4.0"]),
        (
            ("autoquant_state", "constraints", "effective_bits"),
            4.5,
            ["run_config.effective_bits is 8.0", "says 4.5"],
        ),
        (("scheme", "auto_quantize_bits"), 4.5, ["is 8.0", "scheme.auto_quantize_bits says 4.5"]),
        (("scheme", "quant_formats"), ["F", "G"], ["scheme.quant_formats says ('F', 'G')"]),
        (("dataset", "size"), "large", ["case.size is 'small'", "dataset.size says 'large'"]),
        (("dataset", "num_calib_samples"), 16, ["is 4", "num_calib_samples says 16"]),
        (("dataset", "num_tokens"), 100, ["is 16", "num_tokens says 100"]),
        (("run_config", "dtype"), "bfloat16", ["is 'float32'", "says 'bfloat16'"]),
    ],
    ids=lambda value: dotted(map(str, value)) if isinstance(value, tuple) else None,
)
def test_copies_of_a_fact_that_disagree_are_refused_with_both_values(document, path, value, said):
    message = refusal(encode(put(document, path, value)))
    assert message.startswith(INVALID)
    assert [part for part in said if part not in message] == []


def test_ranking_that_lacks_a_group_or_is_in_another_order_is_refused(document):
    ranking = document["sensitivity_ranking"]
    shorter = encode(document | {"sensitivity_ranking": ranking[:2]})
    assert f"group '{OUTPUT}' is once in layer_sensitivity and 0 times" in refusal(shorter)
    first, *_, last = ranking
    document["layer_sensitivity"][MLP]["rank"], document["layer_sensitivity"][OUTPUT]["rank"] = 3, 1
    swapped = encode(document | {"sensitivity_ranking": [last, ranking[1], first]})
    assert "the most sensitive comes first" in refusal(swapped)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spearman",), 1.0, "score_check.spearman by its groups is 0.5, but the record says 1.0"),
        (("top_ten",), 2, "score_check.top_ten by its groups is 3, but the record says 2"),
        (("tokens",), 9, "score_check.tokens by its groups is 10, but the record says 9"),
        (("groups", OUTPUT, "kl"), 7.0, "score_check.spearman by its groups is -0.5"),
        (("groups",), {}, "score_check.groups must be the groups of layer_sensitivity"),
    ],
    ids=lambda value: dotted(value) if isinstance(value, tuple) else None,
)
def test_check_of_the_scores_that_its_groups_do_not_give_is_refused(manifest, path, value, said):
    """Attention, output and mlp score 3, 1 and 6."""
    checked = json.loads(dump_manifest(with_check(manifest, [1.0, 2.0, 3.0])))
    assert load_manifest(encode(checked), source="m.json").score_check.spearman == 0.5
    refused = put(checked, ("score_check", *path), value)
    assert said in refusal(encode(refused))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("kl",), 3.0, "caption_kl gives 1.0 per token, kl is 3.0; one of them was changed"),
        (("tokens",), 9, "tokens must be the predictions of its captions"),
        (("captions",), 2, "caption_kl must be base64 of 2 numbers"),
    ],
    ids=lambda value: dotted(value) if isinstance(value, tuple) else None,
)
def test_whole_model_that_its_captions_do_not_give_is_refused(manifest, path, value, said):
    """Ten tokens of three captions are scored."""
    document = json.loads(dump_manifest(with_whole(manifest, [5.0, 3.0, 2.0])))
    assert load_manifest(encode(document), source="m.json").whole_model.kl == 1.0
    assert f"whole_model: {said}" in refusal(encode(put(document, ("whole_model", *path), value)))
