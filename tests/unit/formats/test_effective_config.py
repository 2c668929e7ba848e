"""Effective configs: overlays applied to bases in both of ModelOpt's forms, and their digests."""

import copy
import dataclasses

import pytest
from drawn_configs import PATTERNS, bases, dict_form, list_form, overlay, overlays, raw_overlays
from hypothesis import given
from hypothesis import strategies as st
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


def effective(pair, granularity, base=None):
    return resolve(PAIRS[pair], OVERLAYS[granularity], base)


def clear_deeply(value):
    """Empty every container in ``value``."""
    if isinstance(value, dict):
        for item in value.values():
            clear_deeply(item)
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
def test_an_overlay_sets_its_keys_and_axis_excludes_block_sizes(form, base, overlay):
    before = resolve(ANY_PAIR, DEFAULT, form(*base))
    after = resolve(ANY_PAIR, overlay, form(*base))
    for (pattern, old), (_, new) in zip(before.quantizers, after.quantizers, strict=True):
        override = overlay.overrides.get(pattern)
        if new is None or override is None:
            assert new == old
            continue
        written, base_written = new.modelopt(), old.modelopt()
        assert not {"axis", "block_sizes"} <= set(written)
        for key in {"axis", "type"} & set(override):
            assert written[key] == override[key]
        if "block_sizes" in override:
            expected = {**base_written.get("block_sizes", {}), **override["block_sizes"]}
            assert written["block_sizes"] == expected


@both_forms
@given(base=bases, overlay=overlays)
def test_applying_an_overlay_twice_equals_once(form, base, overlay):
    once = resolve(ANY_PAIR, overlay, form(*base))
    twice = resolve(ANY_PAIR, overlay, once.modelopt())
    assert repr(twice.modelopt()) == repr(once.modelopt())
    assert twice.digest == once.digest


@both_forms
@given(base=bases, overlay=overlays)
def test_everything_but_the_two_quantizer_entries_is_untouched(form, base, overlay):
    rows, _ = base
    config = resolve(ANY_PAIR, overlay, form(*base))
    expected = list_form(*base)["quant_cfg"]
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
@given(base=bases)
def test_the_default_overlay_is_the_identity(form, base):
    config = resolve(ANY_PAIR, DEFAULT, form(*base))
    assert list(config.entries) == list_form(*base)["quant_cfg"]
    assert config.no_effect is None
    assert config.algorithm == ("max" if config.notes else base[1])
    assert not config.notes or base[1] is None


@given(base=bases, overlay=overlays)
def test_both_forms_of_a_base_give_one_digest(base, overlay):
    listed, keyed = (resolve(ANY_PAIR, overlay, form(*base)) for form in (list_form, dict_form))
    assert listed.digest == keyed.digest
    assert listed.effective_bits == keyed.effective_bits


@given(base=bases, raw=raw_overlays(st.sampled_from([-1, -2, 0])))
def test_string_block_keys_from_yaml_are_normalised(base, raw):
    def with_string_keys(override):
        blocks = override.get("block_sizes", {})
        return override | ({"block_sizes": {str(k): blocks[k] for k in blocks}} if blocks else {})

    written = {pattern: with_string_keys(override) for pattern, override in raw.items()}
    assert overlay(written) == overlay(raw)
    spelled, plain = (resolve(ANY_PAIR, overlay(each), list_form(*base)) for each in (written, raw))
    assert repr(spelled.entries) == repr(plain.entries)
    assert spelled.digest == plain.digest


@pytest.mark.parametrize("granularity", OVERLAYS)
def test_no_overlay_enables_a_quantizer_or_changes_a_dtype(granularity):
    def dtypes(overlay):
        return {
            (pair, pattern): attributes and attributes.num_bits
            for pair in PAIRS
            for pattern, attributes in effective(pair, overlay).quantizers
        }

    assert dtypes(granularity) == dtypes("default")


@pytest.mark.parametrize(
    ("pair", "granularity", "weight"),
    [
        ("wint4_aint8", "w_per_out_channel", {"num_bits": 4, "axis": 0}),
        ("wint8_aint8", "w_group64", {"num_bits": 8, "block_sizes": {-1: 64}}),
        (
            "wfp4_afp8",  # the base's scale format survives a new block size
            "w_group64",
            {"num_bits": (2, 1), "block_sizes": {-1: 64, "type": "dynamic", "scale_bits": (8, 0)}},
        ),
    ],
)
def test_the_weight_quantizer_under_an_overlay(pair, granularity, weight):
    assert effective(pair, granularity).weight.modelopt() == weight


def test_the_last_unscoped_entry_of_a_name_is_the_one_that_changes():
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


@pytest.mark.parametrize(
    ("pair", "granularity", "weight", "input_"),
    [
        ("wfp8_afp16", "default", "tensor", "nothing"),
        ("wfp16_aint8", "default", "nothing", "tensor"),
        ("wint4_aint8", "default", "block", "tensor"),
        ("wfp8_afp8", "recipe_match_channel_token", "output channel", "token"),
        ("wint8_aint8", "a_per_hidden_channel", "output channel", "input channel"),
    ],
)
def test_which_values_of_weights_and_inputs_share_a_scale(pair, granularity, weight, input_):
    config = effective(pair, granularity)
    assert (config.scale_shared_by("weight"), config.scale_shared_by("input")) == (weight, input_)


@pytest.mark.parametrize(
    ("pair", "granularity", "padded"),
    [
        ("wint4_afp16", "w_group128", 384),
        ("wint4_afp16", "w_per_tensor", 320),
        ("wfp16_afp8", "default", 320),
    ],
)
def test_width_of_a_padded_linear(pair, granularity, padded):
    assert effective(pair, granularity).padded_width(320) == padded


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_quantizer_can_be_disabled(pattern):
    config = effective("wint4_aint8", "default")
    reduced = config.without(pattern)
    assert dict(reduced.quantizers) == {**dict(config.quantizers), pattern: None}
    assert reduced.entries == (*config.entries, {"quantizer_name": pattern, "enable": False})
    assert reduced.digest != config.digest


@pytest.mark.parametrize(
    ("pair", "granularity", "algorithm", "static"),
    [
        ("wfp4_afp16", "default", None, None),
        ("wfp4_afp4", "default", None, None),
        ("wfp4_aint8", "a_per_token_dynamic", None, None),
        ("wfp4_afp8", "default", "max", INPUT_QUANTIZER),
        ("wfp4_aint8", "a_per_tensor_static", "max", INPUT_QUANTIZER),
        ("wint8_aint8", "default", "max", None),
    ],
)
def test_a_static_quantizer_changes_algorithm_none_to_max_with_a_note(
    pair, granularity, algorithm, static
):
    config = effective(pair, granularity)
    assert config.algorithm == config.modelopt()["algorithm"] == algorithm
    assert config.notes == (
        ()
        if static is None
        else (
            f"the base config has no calibration algorithm, but {static} needs calibration: "
            "algorithm set to max",
        )
    )


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
def test_an_overlay_of_disabled_quantizers_has_no_effect(pair, granularity, disabled):
    config, plain = effective(pair, granularity), effective(pair, "default")
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
def test_an_overlay_changes_the_enabled_quantizer_and_notes_the_disabled_one(
    pair, disabled, changed
):
    config = effective(pair, "recipe_match_channel_token")
    quantizers = dict(config.quantizers)
    assert config.no_effect is None
    assert config.notes == (
        f"{disabled} is disabled by the pair: its override had nothing to act on",
    )
    assert quantizers[disabled] is None
    assert quantizers[changed] != dict(effective(pair, "default").quantizers)[changed]


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
def test_the_digest_ignores_defaults_and_sees_what_changes_bits(written, is_same):
    def digest(attributes):
        return resolve(
            ANY_PAIR, DEFAULT, list_form([(WEIGHT_QUANTIZER, None, attributes, True)])
        ).digest

    assert (digest({"num_bits": 8}) == digest({"num_bits": 8, **written})) is is_same


def test_the_digest_ignores_the_order_of_attributes():
    attributes = {"num_bits": 8, "block_sizes": {-1: 64, "scale_bits": (8, 0)}, "fake_quant": True}
    base = list_form([(WEIGHT_QUANTIZER, None, attributes, True)])
    reordered = copy.deepcopy(base)
    (entry,) = reordered["quant_cfg"]
    entry["cfg"]["block_sizes"] = dict(reversed(attributes["block_sizes"].items()))
    entry["cfg"] = dict(reversed(entry["cfg"].items()))
    assert resolve(ANY_PAIR, DEFAULT, base).digest == resolve(ANY_PAIR, DEFAULT, reordered).digest


def test_the_digest_sees_algorithm_entry_order_and_disable_patterns():
    base = compose("int8", "int8")
    entries = base["quant_cfg"]
    variants = [
        base,
        {**base, "algorithm": {"method": "smoothquant"}},
        {**base, "quant_cfg": entries[::-1]},
        {**base, "quant_cfg": entries[:-1]},
    ]
    assert len({resolve(ANY_PAIR, DEFAULT, each).digest for each in variants}) == len(variants)


def test_the_digest_depends_on_no_name():
    pair = dataclasses.replace(ANY_PAIR, name="mine", format_name="MINE", experimental=True)
    renamed = resolve(pair, Granularity(name="other", weight={"axis": 0}))
    assert renamed.digest == effective("wint8_aint8", "w_per_out_channel").digest


def test_the_digest_of_a_config_is_stable_over_releases():
    digest = effective("wint4_aint8", "w_group64").digest
    assert digest == "b26e6a083b247171a27ba1a4245fb31b2caaf8ee70a9378ff0f44460880681aa"
