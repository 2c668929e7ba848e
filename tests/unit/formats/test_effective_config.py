"""Effective configs: overlays applied to bases in both of ModelOpt's forms, and their digests."""

import copy
import dataclasses

import pytest
from drawn_configs import PATTERNS, bases, dict_form, list_form, overlay, overlays, raw_overlays
from hypothesis import given
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import apply_overlay, resolve
from pytest_autoquant.formats.granularity import DEFAULT, Granularity
from pytest_autoquant.formats.quant_cfg import entry_list
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER, compose
from pytest_autoquant.grid.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()
PAIRS, OVERLAYS = VOCABULARY.pairs, VOCABULARY.granularities
ANY_PAIR = PAIRS["wint8_aint8"]
OWNED = {"axis", "block_sizes", "type"}

both_forms = pytest.mark.parametrize("form", [list_form, dict_form])


def effective(pair, granularity="default", base=None):
    return resolve(PAIRS[pair], OVERLAYS[granularity], base)


def clear_deeply(value):
    """Empty every container in ``value``."""
    if isinstance(value, dict):
        clear_deeply(list(value.values()))
        value.clear()
    elif isinstance(value, (list, tuple)):
        for item in value:
            clear_deeply(item)
        if isinstance(value, list):
            value.clear()


@both_forms
@given(base=bases, overlay=overlays)
def test_base_overlay_and_result_share_no_mutable_state(form, base, overlay):
    written = form(*base)
    before = repr((written, overlay))
    config = resolve(ANY_PAIR, overlay, written)
    result = repr(config)
    clear_deeply(config.modelopt())
    assert repr(config) == result
    clear_deeply(config.entries)
    clear_deeply(config.algorithm)
    entries = entry_list(written["quant_cfg"])
    listed = repr(entries)
    clear_deeply(apply_overlay(entries, overlay))
    assert repr(entries) == listed
    assert repr((written, overlay)) == before


@both_forms
@given(base=bases, overlay=overlays)
def test_overlay_sets_its_keys_and_nothing_else(form, base, overlay):
    before, config = (resolve(ANY_PAIR, each, form(*base)) for each in (DEFAULT, overlay))
    assert list(before.entries) == list_form(*base)["quant_cfg"]
    assert before.no_effect is None
    assert before.algorithm == ("max" if before.notes else base[1])
    for row, entry, original in zip(base[0], config.entries, before.entries, strict=True):
        name, parent_class, _, enabled = row
        if not enabled or parent_class or name not in overlay.overrides:
            assert entry == original
            continue
        override, old, new = overlay.overrides[name], original["cfg"], entry["cfg"]
        kept = {key: old[key] for key in old if key not in OWNED | {"effective_bits"}}
        assert entry["quantizer_name"] == name
        assert {key: new[key] for key in new if key not in OWNED} == kept
        assert not {"axis", "block_sizes"} <= set(new)
        assert all(new[key] == override[key] for key in {"axis", "type"} & set(override))
        if "block_sizes" in override:
            assert new["block_sizes"] == {**old.get("block_sizes", {}), **override["block_sizes"]}


@given(base=bases, overlay=overlays)
def test_both_forms_of_a_base_and_a_second_application_give_one_digest(base, overlay):
    listed, keyed = (resolve(ANY_PAIR, overlay, form(*base)) for form in (list_form, dict_form))
    assert (listed.digest, listed.effective_bits) == (keyed.digest, keyed.effective_bits)
    twice = resolve(ANY_PAIR, overlay, listed.modelopt())
    assert repr(twice.modelopt()) == repr(listed.modelopt())
    assert twice.digest == listed.digest


@given(base=bases, raw=raw_overlays)
def test_block_keys_that_are_text_equal_integers(base, raw):
    def with_text_keys(override):
        blocks = override.get("block_sizes")
        return override | ({"block_sizes": {str(k): blocks[k] for k in blocks}} if blocks else {})

    written = {pattern: with_text_keys(override) for pattern, override in raw.items()}
    text, plain = (resolve(ANY_PAIR, overlay(each), list_form(*base)) for each in (written, raw))
    assert repr(text.entries) == repr(plain.entries)


def test_last_unscoped_entry_of_a_name_is_the_one_that_changes():
    early, late = {"num_bits": 4, "axis": 0}, {"num_bits": 8, "axis": 0}
    rows = [
        (WEIGHT_QUANTIZER, None, early, True),
        (WEIGHT_QUANTIZER, None, late, True),
        (WEIGHT_QUANTIZER, "nn.Embedding", early, True),
    ]
    config = effective("wint8_afp16", "w_per_in_channel", list_form(rows))
    assert [entry["cfg"]["axis"] for entry in config.entries] == [0, 1, 0]
    assert config.effective_bits == 8


@pytest.mark.parametrize("is_list", [True, False])
def test_only_the_default_overlay_accepts_quantizers_in_sequence(is_list):
    sequence = [{"num_bits": 4, "block_sizes": {-1: 128}}, {"num_bits": (4, 3)}]
    entry = {"quantizer_name": WEIGHT_QUANTIZER, "cfg": sequence}
    base = {"quant_cfg": [entry] if is_list else {WEIGHT_QUANTIZER: sequence}}
    config = effective("wint4_afp8", "default", base)
    assert config.entries == (entry,)
    assert config.weight.is_sequential
    with pytest.raises(UsageError, match=r"'w_group64' cannot change \*weight_quantizer"):
        effective("wint4_afp8", "w_group64", base)


@pytest.mark.parametrize(
    ("pair", "granularity", "bits"),
    [
        ("wfp4_afp8", "default", 4.25),
        ("wnvfp4_anvfp4", "default", 4.5),
        ("wint4_aint8", "w_group128", 4.125),
        ("wint4_aint8", "w_group64", 4.25),
        ("wint4_aint8", "w_per_in_channel", 4),
        ("wint8_aint4", "a_per_token_dynamic", 8),
        ("wfp8_afp16", "w_group64", 8.25),
        ("wfp16_aint8", "a_per_hidden_channel", 16),
    ],
)
def test_effective_bits_count_what_is_stored_per_weight(pair, granularity, bits):
    config = effective(pair, granularity)
    assert config.effective_bits == config.modelopt()["effective_bits"] == bits


@pytest.mark.parametrize(
    ("pair", "granularity", "weight", "input_"),
    [
        ("wint4_afp16", "default", "block", "nothing"),
        ("wfp8_afp8", "recipe_match_channel_token", "output channel", "token"),
        ("wint8_aint8", "a_per_hidden_channel", "output channel", "input channel"),
    ],
)
def test_which_values_of_weights_and_inputs_share_a_scale(pair, granularity, weight, input_):
    config = effective(pair, granularity)
    assert (config.scale_shared_by("weight"), config.scale_shared_by("input")) == (weight, input_)


@pytest.mark.parametrize(
    ("pair", "granularity", "padded"),
    [("wint4_afp16", "w_group128", 384), ("wfp16_afp8", "default", 320)],
)
def test_width_of_a_padded_linear(pair, granularity, padded):
    assert effective(pair, granularity).padded_width(320) == padded


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_quantizer_can_be_disabled(pattern):
    config = effective("wint4_aint8")
    reduced = config.without(pattern)
    assert dict(reduced.quantizers) == {**dict(config.quantizers), pattern: None}
    assert reduced.entries == (*config.entries, {"quantizer_name": pattern, "enable": False})
    assert reduced.digest != config.digest


@pytest.mark.parametrize(
    ("pair", "granularity", "algorithm", "static"),
    [
        ("wfp4_afp4", "default", None, None),
        ("wfp4_aint8", "a_per_token_dynamic", None, None),
        ("wfp4_afp8", "default", "max", INPUT_QUANTIZER),
        ("wint8_aint8", "default", "max", None),
    ],
)
def test_static_quantizer_changes_algorithm_none_to_max_with_a_note(
    pair, granularity, algorithm, static
):
    config = effective(pair, granularity)
    assert config.algorithm == config.modelopt()["algorithm"] == algorithm
    note = "the base config has no calibration algorithm, but {} needs calibration: algorithm set "
    assert config.notes == ((note.format(static) + "to max",) if static else ())


def test_base_that_names_an_algorithm_keeps_it():
    smoothquant = {"method": "smoothquant", "alpha": 0.5}
    base = {**compose("int8", "int8"), "algorithm": smoothquant}
    config = effective("wint8_aint8", "a_per_tensor_static", base)
    assert (config.algorithm, config.notes) == (smoothquant, ())


@pytest.mark.parametrize(
    ("pair", "granularity", "disabled"),
    [
        ("wfp4_afp16", "a_per_tensor_static", INPUT_QUANTIZER),
        ("wfp16_afp8", "w_group64", WEIGHT_QUANTIZER),
    ],
)
def test_overlay_of_disabled_quantizers_has_no_effect(pair, granularity, disabled):
    config, plain = effective(pair, granularity), effective(pair)
    assert config.no_effect == f"the overlay only touches {disabled}, which the pair disables"
    assert (config.entries, config.notes) == (plain.entries, plain.notes)
    assert config.digest == plain.digest


@pytest.mark.parametrize(
    ("pair", "disabled", "changed"),
    [
        ("wint4_afp16", INPUT_QUANTIZER, WEIGHT_QUANTIZER),
        ("wfp16_aint8", WEIGHT_QUANTIZER, INPUT_QUANTIZER),
    ],
)
def test_overlay_changes_the_enabled_quantizer_and_notes_the_disabled_one(pair, disabled, changed):
    config = effective(pair, "recipe_match_channel_token")
    assert config.no_effect is None
    assert config.notes == (
        f"{disabled} is disabled by the pair: its override had nothing to act on",
    )
    assert dict(config.quantizers)[disabled] is None
    assert dict(config.quantizers)[changed] != dict(effective(pair).quantizers)[changed]


# --- digests


@pytest.mark.parametrize(
    ("pair", "aliases"),
    [
        (
            "wint8_aint8",
            [
                {"default", "w_per_out_channel", "a_per_tensor_static"},
                {"recipe_match_channel_token", "a_per_token_dynamic"},
            ],
        ),
        ("wfp8_afp8", [{"default", "w_per_tensor", "a_per_tensor_static"}]),
        ("wint4_aint4", [{"default", "w_group128", "a_per_tensor_static"}]),
    ],
)
def test_overlays_share_a_digest_exactly_where_they_ask_for_the_same(pair, aliases):
    by_digest = {}
    for name in OVERLAYS:
        by_digest.setdefault(effective(pair, name).digest, set()).add(name)
    assert [group for group in by_digest.values() if len(group) > 1] == aliases


def test_no_two_pairs_share_a_digest():
    assert len({effective(name).digest for name in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(
    ("written", "is_same"), [({"type": "static"}, True), ({"narrow_range": True}, False)]
)
def test_digest_ignores_defaults_and_the_order_of_attributes(written, is_same):
    attributes = {"num_bits": 8, "block_sizes": {-1: 64, "scale_bits": (8, 0)}, "fake_quant": True}
    base = list_form([(WEIGHT_QUANTIZER, None, attributes, True)])
    other = copy.deepcopy(base)
    (entry,) = other["quant_cfg"]
    entry["cfg"]["block_sizes"] = dict(reversed(attributes["block_sizes"].items()))
    entry["cfg"] = written | dict(reversed(entry["cfg"].items()))
    one, two = (resolve(ANY_PAIR, DEFAULT, each) for each in (base, other))
    assert (one.digest == two.digest) is is_same


def test_digest_depends_on_algorithm_entry_order_and_disable_patterns():
    base = compose("int8", "int8")
    variants = [
        base,
        {**base, "algorithm": {"method": "smoothquant"}},
        {**base, "quant_cfg": base["quant_cfg"][::-1]},
        {**base, "quant_cfg": base["quant_cfg"][:-1]},
    ]
    assert len({resolve(ANY_PAIR, DEFAULT, each).digest for each in variants}) == len(variants)


def test_digest_depends_on_no_name():
    pair = dataclasses.replace(ANY_PAIR, name="mine", format_name="MINE", experimental=True)
    renamed = resolve(pair, Granularity(name="other", weight={"axis": 0}))
    assert renamed.digest == effective("wint8_aint8", "w_per_out_channel").digest


def test_digest_of_a_config_is_stable_over_releases():
    digest = effective("wint4_aint8", "w_group64").digest
    assert digest == "b26e6a083b247171a27ba1a4245fb31b2caaf8ee70a9378ff0f44460880681aa"
