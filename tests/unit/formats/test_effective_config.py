"""Effective configs: overlays applied to bases in both of ModelOpt's forms, and their digests."""

import copy
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import (
    ATTRIBUTE_DEFAULTS,
    apply_overlay,
    effective_config,
    entry_list,
)
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER, compose
from pytest_autoquant.formats.user_yaml import granularity_of
from pytest_autoquant.grid.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()
PAIRS, OVERLAYS = VOCABULARY.pairs, VOCABULARY.granularities
ANY_PAIR, DEFAULT = PAIRS["wint8_aint8"], OVERLAYS["default"]
HALVES = (WEIGHT_QUANTIZER, INPUT_QUANTIZER)
OWNED = {"axis", "block_sizes", "type"}


def effective(pair, granularity, base=None):
    return effective_config(PAIRS[pair], OVERLAYS[granularity], base)


# A base is drawn once as rows and written in either of ModelOpt's forms:
# (quantizer name, parent class or None, attributes or None, enabled).


def as_list(rows, algorithm):
    entries = []
    for name, parent_class, attributes, enabled in rows:
        entry = {"parent_class": parent_class} if parent_class else {}
        entry["quantizer_name"] = name
        if attributes is not None:
            entry["cfg"] = copy.deepcopy(attributes)
        if not enabled:
            entry["enable"] = False
        entries.append(entry)
    return {"quant_cfg": entries, "algorithm": algorithm}


def as_dict(rows, algorithm):
    quant_cfg = {}
    for name, parent_class, attributes, enabled in rows:
        value = copy.deepcopy(attributes or {}) | ({} if enabled else {"enable": False})
        key = "default" if name == "*" else name
        quant_cfg[parent_class or key] = {name: value} if parent_class else value
    return {"quant_cfg": quant_cfg, "algorithm": algorithm}


both_forms = pytest.mark.parametrize("form", [as_list, as_dict])

block_values = st.sampled_from([None, 16, 32, 64, 128])
special_block_keys = {
    "type": st.sampled_from(["static", "dynamic"]),
    "scale_bits": st.sampled_from([(8, 0), (4, 3)]),
}
scales = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"axis": st.sampled_from([None, 0, 1, -1, (0, 1)])}),
    st.fixed_dictionaries(
        {
            "block_sizes": st.fixed_dictionaries(
                {-1: block_values}, optional={-2: block_values, **special_block_keys}
            )
        }
    ),
)
attributes = st.builds(
    lambda dtype, scale, more: {**dtype, **scale, **more},
    st.fixed_dictionaries({"num_bits": st.sampled_from([4, 8, (4, 3), (2, 1)])}),
    scales,
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["static", "dynamic"]),
            "fake_quant": st.just(True),
            "effective_bits": st.just(4.5),
        },
    ),
)
quantizers = st.one_of(
    st.tuples(attributes, st.just(True)),
    st.tuples(st.one_of(st.none(), attributes), st.just(False)),
)
OTHER_ROWS = (
    ("*lm_head*", None, None, False),
    ("*visual*", None, None, False),
    ("*output_quantizer", None, {"num_bits": 8, "axis": None}, True),
    ("*router*", None, {"num_bits": 8}, False),
    ("*weight_quantizer", "nn.Embedding", {"num_bits": 4, "axis": 0}, True),
    ("*", "nn.BatchNorm1d", None, False),
)


@st.composite
def bases(draw):
    halves = [(name, None, *draw(quantizers)) for name in HALVES]
    others = draw(st.lists(st.sampled_from(OTHER_ROWS), unique_by=lambda row: row[:2]))
    rows = [("*", None, None, False), *draw(st.permutations(halves + others))]
    algorithm = draw(st.sampled_from([None, "max", {"method": "smoothquant", "alpha": 0.5}]))
    return rows, algorithm


def _distinct(block_sizes):
    return len({int(key) for key in block_sizes}) == len(block_sizes)


def overrides(block_keys):
    """One quantizer's half of an overlay, as YAML gives it."""
    scaling_type = st.fixed_dictionaries({"type": st.sampled_from(["static", "dynamic"])})
    axis = st.fixed_dictionaries({"axis": st.sampled_from([None, 0, 1, -1, [0, 1]])})
    block_sizes = st.fixed_dictionaries(
        {"block_sizes": st.dictionaries(block_keys, block_values, min_size=1).filter(_distinct)}
    )
    scale = st.one_of(axis, block_sizes)
    return st.one_of(scaling_type, scale, st.builds(lambda a, b: {**a, **b}, scale, scaling_type))


def raw_overlays(block_keys):
    half = overrides(block_keys)
    return st.dictionaries(st.sampled_from(HALVES), half, min_size=1)


def overlay(raw):
    return granularity_of({"name": "drawn", "quant_cfg_overrides": raw}, source="test")


overlays = st.builds(overlay, raw_overlays(st.sampled_from([-1, -2]) | st.sampled_from(["-1"])))


def scribble(value):
    """Empty everything that can be emptied, however deep."""
    if isinstance(value, dict):
        for item in value.values():
            scribble(item)
        value.clear()
    elif isinstance(value, (list, tuple)):
        for item in value:
            scribble(item)
        if isinstance(value, list):
            value.clear()


@both_forms
@given(base=bases(), overlay=overlays)
def test_neither_applying_nor_using_the_result_mutates_base_or_overlay(form, base, overlay):
    given_base = form(*base)
    before = repr((given_base, overlay))
    config = effective_config(ANY_PAIR, overlay, given_base)
    assert repr((given_base, overlay)) == before
    result = repr(config)
    scribble(config.modelopt())
    assert repr(config) == result
    scribble(config.entries)
    scribble(config.algorithm)
    assert repr((given_base, overlay)) == before


@both_forms
@given(base=bases(), overlay=overlays)
def test_each_step_leaves_what_it_was_given_alone(form, base, overlay):
    quant_cfg = form(*base)["quant_cfg"]
    before = repr(quant_cfg)
    entries = entry_list(quant_cfg)
    listed = repr(entries)
    scribble(apply_overlay(entries, overlay))
    assert repr(entries) == listed
    scribble(entries)
    assert repr(quant_cfg) == before


@both_forms
@given(base=bases(), overlay=overlays)
def test_an_overlay_does_what_it_says_and_axis_and_block_sizes_never_coexist(form, base, overlay):
    before = effective_config(ANY_PAIR, DEFAULT, form(*base))
    after = effective_config(ANY_PAIR, overlay, form(*base))
    for half in HALVES:
        old, new, asked = before.quantizer(half), after.quantizer(half), overlay.overrides.get(half)
        if new is None or asked is None:
            assert new == old
            continue
        assert not {"axis", "block_sizes"} <= set(new)
        for key in ("axis", "type"):
            if key in asked:
                assert new[key] == asked[key]
        if "block_sizes" in asked:
            assert new["block_sizes"] == {**old.get("block_sizes", {}), **asked["block_sizes"]}


@both_forms
@given(base=bases(), overlay=overlays)
def test_applying_an_overlay_twice_equals_once(form, base, overlay):
    once = effective_config(ANY_PAIR, overlay, form(*base))
    twice = effective_config(ANY_PAIR, overlay, once.modelopt())
    assert repr(twice.modelopt()) == repr(once.modelopt())
    assert twice.digest == once.digest


@both_forms
@given(base=bases(), overlay=overlays)
def test_everything_but_the_two_quantizer_entries_is_untouched(form, base, overlay):
    rows, _ = base
    config = effective_config(ANY_PAIR, overlay, form(*base))
    expected = as_list(*base)["quant_cfg"]
    assert len(config.entries) == len(expected)
    for (name, parent_class, _, enabled), entry, original in zip(
        rows, config.entries, expected, strict=True
    ):
        if enabled and not parent_class and name in overlay.overrides:
            kept = {k: v for k, v in original["cfg"].items() if k not in OWNED | {"effective_bits"}}
            left = {k: v for k, v in entry["cfg"].items() if k not in OWNED}
            assert (entry["quantizer_name"], left) == (name, kept)
        else:
            assert entry == original


@both_forms
@given(base=bases())
def test_default_is_the_identity(form, base):
    config = effective_config(ANY_PAIR, DEFAULT, form(*base))
    assert list(config.entries) == as_list(*base)["quant_cfg"]
    assert config.no_effect is None
    assert config.algorithm == ("max" if config.notes else base[1])
    assert not config.notes or base[1] is None


@given(base=bases(), overlay=overlays)
def test_both_forms_of_a_base_give_one_digest(base, overlay):
    listed, keyed = (
        effective_config(ANY_PAIR, overlay, form(*base)) for form in (as_list, as_dict)
    )
    assert listed.digest == keyed.digest
    assert listed.effective_bits == keyed.effective_bits


@both_forms
@given(base=bases(), raw=raw_overlays(st.sampled_from([-1, -2, 0])))
def test_string_block_keys_from_yaml_are_normalised(form, base, raw):
    def with_string_keys(half):
        blocks = half.get("block_sizes")
        return (
            half if blocks is None else {**half, "block_sizes": {str(k): blocks[k] for k in blocks}}
        )

    written = {pattern: with_string_keys(half) for pattern, half in raw.items()}
    assert overlay(written) == overlay(raw)
    spelled, plain = (effective_config(ANY_PAIR, overlay(o), form(*base)) for o in (written, raw))
    assert repr(spelled.entries) == repr(plain.entries)
    assert spelled.digest == plain.digest


@pytest.mark.parametrize("granularity", OVERLAYS)
def test_no_overlay_enables_a_quantizer_or_changes_a_dtype(granularity):
    def dtypes(overlay):
        configs = {pair: effective(pair, overlay) for pair in PAIRS}
        quantizers = {(p, half): configs[p].quantizer(half) for p in PAIRS for half in HALVES}
        return {key: cfg and cfg["num_bits"] for key, cfg in quantizers.items()}

    assert dtypes(granularity) == dtypes("default")


def test_a_new_block_size_keeps_the_scale_format_of_the_base():
    weight = effective("wfp4_afp8", "w_group64").quantizer(WEIGHT_QUANTIZER)
    assert weight["block_sizes"] == {-1: 64, "type": "dynamic", "scale_bits": (8, 0)}


def test_setting_axis_removes_block_sizes_and_the_other_way_round():
    per_channel = effective("wint4_aint8", "w_per_out_channel").quantizer(WEIGHT_QUANTIZER)
    assert per_channel == {"num_bits": 4, "axis": 0}
    grouped = effective("wint8_aint8", "w_group64").quantizer(WEIGHT_QUANTIZER)
    assert grouped == {"num_bits": 8, "block_sizes": {-1: 64}}


def test_the_last_unscoped_entry_of_a_name_is_the_one_that_changes():
    early, late = {"num_bits": 4, "axis": 0}, {"num_bits": 8, "axis": 0}
    base = as_list(
        [
            (WEIGHT_QUANTIZER, None, early, True),
            (WEIGHT_QUANTIZER, None, late, True),
            (WEIGHT_QUANTIZER, "nn.Embedding", early, True),
        ],
        "max",
    )
    config = effective("wint8_afp16", "w_per_in_channel", base)
    assert [entry["cfg"]["axis"] for entry in config.entries] == [0, 1, 0]
    assert config.effective_bits == 8


def test_the_older_forms_default_comes_first_wherever_it_stands():
    # ModelOpt before 0.44 applied "default" before everything else and wrote it last in its presets
    rows = [
        ("*", None, None, False),
        (WEIGHT_QUANTIZER, None, {"num_bits": 8, "axis": 0}, True),
        ("*lm_head*", None, None, False),
    ]
    written = as_dict([*rows[1:], rows[0]], "max")
    assert list(written["quant_cfg"])[-1] == "default"
    assert entry_list(written["quant_cfg"]) == as_list(rows, "max")["quant_cfg"]


def test_an_overlay_refuses_quantizers_in_sequence_and_default_lets_them_be():
    sequence = [{"num_bits": 4, "block_sizes": {-1: 128}}, {"num_bits": (4, 3)}]
    for base in (
        {"quant_cfg": [{"quantizer_name": WEIGHT_QUANTIZER, "cfg": sequence}], "algorithm": "max"},
        {"quant_cfg": {WEIGHT_QUANTIZER: sequence}, "algorithm": "max"},
    ):
        config = effective("wint4_afp8", "default", base)
        assert config.entries == ({"quantizer_name": WEIGHT_QUANTIZER, "cfg": sequence},)
        with pytest.raises(UsageError, match=r"'w_group64' cannot change \*weight_quantizer"):
            effective("wint4_afp8", "w_group64", base)


@pytest.mark.parametrize(
    ("pair", "granularity", "bits"),
    [
        ("wfp4_afp8", "default", 4.25),
        ("wfp4_afp4", "default", 4.25),
        ("wnvfp4_afp16", "default", 4.5),
        ("wnvfp4_anvfp4", "default", 4.5),
        ("wint4_afp16", "default", 4.125),
        ("wint4_aint8", "w_group128", 4.125),
        ("wint4_aint8", "w_group64", 4.25),
        ("wint4_aint8", "w_per_tensor", 4),
        ("wint4_aint8", "w_per_in_channel", 4),
        ("wint8_aint4", "default", 8),
        ("wint8_aint8", "w_per_tensor", 8),
        ("wint8_aint8", "w_group128", 8.125),
        ("wfp8_afp8", "default", 8),
        ("wfp8_afp8", "w_per_out_channel", 8),
        ("wfp8_afp16", "w_group64", 8.25),
        ("wint8_aint4", "a_per_token_dynamic", 8),
        ("wfp16_afp8", "default", 16),
        ("wfp16_aint8", "a_per_hidden_channel", 16),
    ],
)
def test_effective_bits_count_what_is_stored_per_weight(pair, granularity, bits):
    config = effective(pair, granularity)
    assert config.effective_bits == bits
    assert config.modelopt()["effective_bits"] == bits


@pytest.mark.parametrize("blocks", [{-1: 128, -2: 128}, {-1: 128, -2: 128, "type": "static"}])
def test_a_two_dimensional_block_shares_its_scale_over_its_area(blocks):
    base = as_list(
        [(WEIGHT_QUANTIZER, None, {"num_bits": (4, 3), "block_sizes": blocks}, True)], "max"
    )
    assert effective("wfp8_afp16", "default", base).effective_bits == 8 + 16 / 128**2


@pytest.mark.parametrize(
    ("pair", "granularity", "algorithm", "reason"),
    [
        ("wfp4_afp16", "default", None, None),
        ("wfp4_afp4", "default", None, None),
        ("wfp4_aint8", "a_per_token_dynamic", None, None),
        ("wfp4_afp8", "default", "max", INPUT_QUANTIZER),
        ("wfp4_aint8", "a_per_tensor_static", "max", INPUT_QUANTIZER),
        ("wint8_aint8", "default", "max", None),
    ],
)
def test_a_static_quantizer_lifts_algorithm_none_to_max_and_a_note_says_so(
    pair, granularity, algorithm, reason
):
    config = effective(pair, granularity)
    assert config.algorithm == config.modelopt()["algorithm"] == algorithm
    if reason is None:
        assert config.notes == ()
    else:
        (note,) = config.notes
        assert reason in note
        assert WEIGHT_QUANTIZER not in note
        assert "algorithm set to max" in note


def test_a_base_that_names_an_algorithm_keeps_it():
    smoothquant = {"method": "smoothquant", "alpha": 0.5}
    base = {**compose("int8", "int8"), "algorithm": smoothquant}
    config = effective("wint8_aint8", "a_per_tensor_static", base)
    assert (config.algorithm, config.notes) == (smoothquant, ())


@pytest.mark.parametrize(
    ("pair", "granularity", "disabled"),
    [
        ("wint8_afp16", "a_per_token_dynamic", INPUT_QUANTIZER),
        ("wfp4_afp16", "a_per_tensor_static", INPUT_QUANTIZER),
        ("wfp16_afp8", "w_group64", WEIGHT_QUANTIZER),
    ],
)
def test_an_overlay_that_only_touches_what_the_pair_disables_has_no_effect(
    pair, granularity, disabled
):
    config, plain = effective(pair, granularity), effective(pair, "default")
    assert disabled in config.no_effect
    assert (config.entries, config.notes) == (plain.entries, plain.notes)
    assert config.digest == plain.digest


@pytest.mark.parametrize(
    ("pair", "idle", "acting"),
    [
        ("wint4_afp16", INPUT_QUANTIZER, WEIGHT_QUANTIZER),
        ("wfp16_aint8", WEIGHT_QUANTIZER, INPUT_QUANTIZER),
    ],
)
def test_one_half_still_acts_where_the_pair_disables_the_other_and_a_note_says_so(
    pair, idle, acting
):
    config = effective(pair, "recipe_match_channel_token")
    assert config.no_effect is None
    (note,) = config.notes
    assert idle in note
    assert acting not in note
    assert config.quantizer(idle) is None
    assert config.quantizer(acting) != effective(pair, "default").quantizer(acting)


TOKEN = "a_per_token_dynamic"  # noqa: S105 - an overlay's name


@pytest.mark.parametrize(
    ("pair", "aliases"),
    [
        (
            "wint8_aint8",
            [
                {"default", "w_per_out_channel", "a_per_tensor_static"},
                {"recipe_match_channel_token", TOKEN},
            ],
        ),
        ("wfp8_afp8", [{"default", "w_per_tensor", "a_per_tensor_static"}]),
        ("wint4_aint4", [{"default", "w_group128", "a_per_tensor_static"}]),
        (
            "wint8_afp16",
            [
                {"default", "w_per_out_channel", "recipe_match_channel_token"}
                | {TOKEN, "a_per_tensor_static", "a_per_hidden_channel"}
            ],
        ),
    ],
)
def test_overlays_share_a_digest_exactly_where_they_ask_for_the_same(pair, aliases):
    by_digest = {}
    for name in OVERLAYS:
        by_digest.setdefault(effective(pair, name).digest, set()).add(name)
    alone = [{name} for name in OVERLAYS if not any(name in group for group in aliases)]
    assert sorted(map(sorted, by_digest.values())) == sorted(map(sorted, [*aliases, *alone]))


def test_no_two_pairs_share_a_digest():
    assert len({effective(name, "default").digest for name in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(
    ("written", "is_same"),
    [
        ({"axis": None}, True),
        ({"type": "static"}, True),
        ({"enable": True}, True),
        ({"effective_bits": 3.0}, True),
        ({"axis": 0}, False),
        ({"type": "dynamic"}, False),
        ({"narrow_range": True}, False),
        ({"num_bits": 4}, False),
    ],
)
def test_a_digest_sees_what_changes_bits_and_no_spelled_out_default(written, is_same):
    def digest(attributes):
        return effective_config(
            ANY_PAIR, DEFAULT, as_list([(WEIGHT_QUANTIZER, None, attributes, True)], "max")
        ).digest

    assert (digest({"num_bits": 8}) == digest({"num_bits": 8, **written})) is is_same


def test_a_digest_does_not_see_in_which_order_attributes_are_written():
    attributes = {"num_bits": 8, "block_sizes": {-1: 64, "scale_bits": (8, 0)}, "fake_quant": True}
    base = as_list([(WEIGHT_QUANTIZER, None, attributes, True)], "max")
    turned = copy.deepcopy(base)
    (entry,) = turned["quant_cfg"]
    entry["cfg"]["block_sizes"] = dict(reversed(attributes["block_sizes"].items()))
    entry["cfg"] = dict(reversed(entry["cfg"].items()))
    digests = {effective_config(ANY_PAIR, DEFAULT, b).digest for b in (base, turned)}
    assert len(digests) == 1


def test_a_digest_sees_algorithm_entry_order_and_disable_patterns():
    base = compose("int8", "int8")
    entries = base["quant_cfg"]
    variants = [
        base,
        {**base, "algorithm": {"method": "smoothquant"}},
        {**base, "quant_cfg": entries[::-1]},
        {**base, "quant_cfg": entries[:-1]},
    ]
    assert len({effective_config(ANY_PAIR, DEFAULT, b).digest for b in variants}) == len(variants)


def test_the_digest_depends_on_no_name():
    pair = dataclasses.replace(ANY_PAIR, name="mine", format_name="MINE", experimental=True)
    renamed = effective_config(pair, Granularity(name="other", weight={"axis": 0}))
    assert renamed.digest == effective("wint8_aint8", "w_per_out_channel").digest


def test_our_attribute_defaults_are_modelopts():
    from modelopt.torch.quantization.config import QuantizerAttributeConfig

    theirs = QuantizerAttributeConfig().model_dump()
    assert {key: theirs[key] for key in ATTRIBUTE_DEFAULTS} == ATTRIBUTE_DEFAULTS
