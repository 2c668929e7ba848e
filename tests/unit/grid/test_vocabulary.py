"""The user's own pairs and overlays: read from YAML, mistakes named by file and key."""

import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.vocabulary import load_vocabulary

BUILTIN = load_vocabulary()

PAIR = "name: {name}\nweight: int4\nactivation: int8\n"
NOTHING = "name: mine\nweight: fp16\nactivation: fp16\n"
OVERLAY = "name: {name}\nquant_cfg_overrides:\n  '*weight_quantizer': {{axis: 0}}\n"

SAMPLES = {
    "quant_pair/wfp8_afp8.yaml": """
        # Hydra-style: comments, one key a line
        name: wfp8_afp8

        weight: fp8
        activation: fp8

        # a preset of ModelOpt
        format_name: FP8_DEFAULT_CFG
        experimental: false
    """,
    "quant_pair/wint4_aint8.yaml": """
        name: wint4_aint8
        weight: int4
        activation: int8
        format_name: INT4_WEIGHT_INT8_ACT_CFG
        experimental: true
    """,
    "quant_granularity/recipe_match_channel_token.yaml": """
        name: recipe_match_channel_token
        quant_cfg_overrides:
          "*weight_quantizer":
            axis: 0
          "*input_quantizer":
            type: dynamic
            block_sizes:
              -1: null
    """,
    "quant_granularity/w_group128.yml": """
        name: w_group128
        quant_cfg_overrides:
          "*weight_quantizer":
            block_sizes:
              "-1": 128
    """,
}


@pytest.fixture
def conf(tmp_path):
    """Write files under a conf folder and return the folder."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


def refusal(folder):
    with pytest.raises(UsageError) as caught:
        load_vocabulary(folder)
    return str(caught.value)


def test_without_a_folder_the_vocabulary_is_the_built_in_one():
    assert (len(BUILTIN.pairs), len(BUILTIN.granularities)) == (24, 10)
    assert next(iter(BUILTIN.granularities)) == "default"


def test_samples_that_repeat_built_ins_load_as_the_built_ins(conf):
    vocabulary = load_vocabulary(conf(SAMPLES))
    assert vocabulary == BUILTIN
    assert list(vocabulary.pairs) == list(BUILTIN.pairs)
    assert list(vocabulary.granularities) == list(BUILTIN.granularities)


def test_new_names_come_after_the_built_in_ones_in_file_order(conf):
    folder = conf(
        {
            "quant_pair/b.yaml": PAIR.format(name="later"),
            "quant_pair/a.yml": PAIR.format(name="sooner"),
            "quant_pair/README.md": "not a pair",
            "quant_granularity/rows.yaml": OVERLAY.format(name="rows"),
        }
    )
    vocabulary = load_vocabulary(folder)
    assert list(vocabulary.pairs) == [*BUILTIN.pairs, "sooner", "later"]
    assert list(vocabulary.granularities) == [*BUILTIN.granularities, "rows"]
    assert vocabulary.granularities["rows"].weight == {"axis": 0}
    assert vocabulary.granularities["rows"].input is None


@pytest.mark.parametrize("only", ["quant_pair/p.yaml", "quant_granularity/g.yaml"])
def test_one_of_the_two_folders_is_enough(conf, only):
    text = (PAIR if "pair" in only else OVERLAY).format(name="mine")
    vocabulary = load_vocabulary(conf({only: text}))
    added = {*vocabulary.pairs, *vocabulary.granularities}
    assert added - {*BUILTIN.pairs, *BUILTIN.granularities} == {"mine"}


def test_a_pair_without_the_optional_keys_is_composed_and_experimental(conf):
    text = "name: mine\nweight: fp8\nactivation: int8\n"
    pair = load_vocabulary(conf({"quant_pair/mine.yaml": text})).pairs["mine"]
    assert (pair.weight, pair.activation) == ("fp8", "int8")
    assert (pair.format_name, pair.from_preset) == ("FP8_WEIGHT_INT8_ACT_CFG", False)
    assert pair.experimental


def test_a_format_name_that_composing_does_not_give_is_read_from_modelopt_later(conf):
    text = PAIR.format(name="w4_awq") + "format_name: INT4_AWQ_CFG\nexperimental: false\n"
    pair = load_vocabulary(conf({"quant_pair/mine.yaml": text})).pairs["w4_awq"]
    assert (pair.format_name, pair.from_preset, pair.is_preset) == ("INT4_AWQ_CFG", True, True)
    assert not pair.experimental


def test_an_overlay_may_override_nothing(conf):
    text = "name: plain\nquant_cfg_overrides:\n"
    overlay = load_vocabulary(conf({"quant_granularity/x.yaml": text})).granularities["plain"]
    assert overlay.overrides == {}


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (PAIR.format(name="mine") + "wieght: int8\n", ("'wieght'", "name, weight, activation")),
        ("name: mine\nweight: int4\n", ("'activation' is missing",)),
        ("weight: int4\nactivation: int8\n", ("'name' is missing",)),
        ("name: mine\nweight: int3\nactivation: int8\n", ("weight 'int3'", "nvfp4, fp8, int8")),
        ("name: mine\nweight: int4\nactivation: 8\n", ("activation 8", "fp16, fp8, int8")),
        ("name: mine\nweight: [int4]\nactivation: int8\n", ("weight ['int4']",)),
        (NOTHING, ("fp16", "nothing to quantize")),
        (NOTHING + "format_name: NVFP4_MLP_ONLY_CFG\n", ("fp16", "nothing to quantize")),
        (PAIR.format(name="mine") + "experimental: maybe\n", ("experimental", "'maybe'")),
        (PAIR.format(name="mine") + "format_name: FP8 CFG\n", ("format_name", "'FP8 CFG'")),
        (PAIR.format(name="mine") + "format_name: null\n", ("format_name", "None")),
        (PAIR.format(name="Mine-1"), ("name", "'Mine-1'", "a-z, 0-9 and _")),
        (PAIR.format(name="../evil"), ("name", "'../evil'")),
        (PAIR.format(name="8"), ("name", "8")),
        (PAIR.format(name="wfp8_afp8"), ("name 'wfp8_afp8'", "built-in")),
        (PAIR.format(name="a") + "weight: int8\n", ("'weight' is written twice", "line 4")),
        ("name: mine\nweight: [int4\n", ("YAML", "line 3")),
        ("name: !!python/object:os.system mine\n", ("YAML", "line 1")),
        ("- name\n- weight\n", ("must be a mapping", "name, weight, activation")),
        ("", ("must be a mapping",)),
    ],
)
def test_a_mistake_in_a_pair_is_named_by_file_and_key(conf, text, fragments):
    folder = conf({"quant_pair/mine.yaml": text})
    message = refusal(folder)
    assert message.startswith(f"{folder / 'quant_pair' / 'mine.yaml'}: ")
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("name: mine\n", ("'quant_cfg_overrides' is missing",)),
        ("quant_cfg_overrides: {}\n", ("'name' is missing",)),
        (OVERLAY.format(name="mine") + "weight: int4\n", ("'weight'", "name, quant_cfg_overrides")),
        (OVERLAY.format(name="w group"), ("name", "'w group'")),
        (OVERLAY.format(name="w_group64"), ("name 'w_group64'", "built-in")),
        (OVERLAY.format(name="default"), ("name 'default'", "built-in")),
        (OVERLAY.format(name="m") + "  '*lm_head*': {axis: 0}\n", ("'*lm_head*'",)),
        (
            OVERLAY.format(name="m") + "  '*weight_quantizer': {axis: 1}\n",
            ("'*weight_quantizer' is written twice", "line 4"),
        ),
        (
            "name: m\nquant_cfg_overrides:\n  '*weight_quantizer': {axis: 0, axis: 1}\n",
            ("'axis' is written twice", "line 3"),
        ),
        (
            "name: m\nquant_cfg_overrides:\n  '*input_quantizer': {block_sizes: {0: 8, '0': 4}}\n",
            ("'0' is written twice", "line 3"),
        ),
        (
            "name: m\nquant_cfg_overrides:\n  '*weight_quantizer': {num_bits: 4}\n",
            ("*weight_quantizer", "'num_bits'"),
        ),
    ],
)
def test_a_mistake_in_an_overlay_is_named_by_file_and_key(conf, text, fragments):
    folder = conf({"quant_granularity/mine.yaml": text})
    message = refusal(folder)
    assert message.startswith(f"{folder / 'quant_granularity' / 'mine.yaml'}: ")
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    "text",
    [
        "? [name, weight]\n: mine\n",
        "name: 2024-13-45\nweight: int4\nactivation: int8\n",
    ],
    ids=["a sequence as key", "an impossible date"],
)
def test_yaml_that_python_cannot_build_is_a_mistake_like_any_other(conf, text):
    folder = conf({"quant_pair/mine.yaml": text})
    assert refusal(folder).startswith(
        f"{folder / 'quant_pair' / 'mine.yaml'}: not readable as YAML"
    )


@pytest.mark.parametrize(("kind", "text"), [("quant_pair", PAIR), ("quant_granularity", OVERLAY)])
def test_a_name_given_twice_is_refused_with_both_files(conf, kind, text):
    folder = conf({f"{kind}/{file}.yaml": text.format(name="mine") for file in ("one", "two")})
    one, two = (folder / kind / f"{file}.yaml" for file in ("one", "two"))
    assert refusal(folder) == f"{two}: name 'mine' is also in {one}"


def test_a_built_in_repeated_twice_is_a_duplicate_too(conf):
    text = SAMPLES["quant_pair/wint4_aint8.yaml"]
    message = refusal(conf({"quant_pair/a.yaml": text, "quant_pair/b.yaml": text}))
    assert "name 'wint4_aint8' is also in" in message


def test_a_file_that_is_not_text_is_named(conf):
    folder = conf({"quant_pair/fine.yaml": PAIR.format(name="mine")})
    (folder / "quant_pair" / "latin.yaml").write_bytes(b"name: gr\xf6\xdfe\n")
    assert refusal(folder).startswith(f"{folder / 'quant_pair' / 'latin.yaml'}: not readable")


def test_a_folder_named_like_a_file_is_named(conf):
    folder = conf({"quant_pair/odd.yaml/inner.txt": "x"})
    assert refusal(folder).startswith(f"{folder / 'quant_pair' / 'odd.yaml'}: not readable")


def test_a_missing_folder_is_an_error_that_names_it_and_the_option(tmp_path):
    assert refusal(tmp_path / "nowhere") == f"--aq-conf {tmp_path / 'nowhere'}: no such folder"


def test_a_folder_without_either_subfolder_is_an_error_that_names_what_belongs_there(conf):
    message = refusal(conf({"quant_pairs/x.yaml": PAIR.format(name="mine")}))
    assert "has none of quant_pair, quant_granularity, scheme" in message


# Schemes

SCHEME = "name: mine\ncandidates: [wfp8_afp8]\n"
A_SCHEME = SCHEME + "effective_bits: 10\n"


def scheme_of(conf, text):
    return load_vocabulary(conf({"scheme/mine.yaml": text})).schemes["mine"]


@pytest.mark.parametrize(
    ("measure", "raw", "amount"),
    [
        ("fraction_of_groups", "0.3", 0.3),
        ("fraction_of_groups", "1", 1.0),
        ("fraction_of_weights", "0", 0.0),
        ("effective_bits", "16", 16.0),
        ("effective_bits", "4.5", 4.5),
    ],
)
def test_a_scheme_is_read_with_its_one_measure(conf, measure, raw, amount):
    scheme = scheme_of(conf, f"{SCHEME}{measure}: {raw}\n")
    assert (scheme.name, scheme.candidates) == ("mine", ("wfp8_afp8",))
    assert (scheme.measure, scheme.amount) == (measure, amount)
    assert type(scheme.amount) is float


def test_schemes_come_after_the_built_in_ones_in_file_order(conf):
    files = {
        f"scheme/{file}": A_SCHEME.replace("mine", name)
        for file, name in (("b.yaml", "later"), ("a.yml", "sooner"))
    }
    vocabulary = load_vocabulary(conf(files))
    assert list(vocabulary.schemes) == [*BUILTIN.schemes, "sooner", "later"]
    assert (vocabulary.pairs, vocabulary.granularities) == (BUILTIN.pairs, BUILTIN.granularities)


def test_a_scheme_that_repeats_a_built_in_word_for_word_is_the_built_in(conf):
    text = "name: fp8_autoquant_top50\ncandidates: [wfp8_afp8]\nfraction_of_groups: {}\n"
    assert load_vocabulary(conf({"scheme/x.yaml": text.format(0.5)})) == BUILTIN
    message = refusal(conf({"scheme/x.yaml": text.format(0.6)}))
    assert "name 'fp8_autoquant_top50' redefines a built-in" in message


def test_a_scheme_name_given_twice_is_refused_with_both_files(conf):
    folder = conf({"scheme/one.yaml": A_SCHEME, "scheme/two.yaml": A_SCHEME})
    one, two = (folder / "scheme" / f"{file}.yaml" for file in ("one", "two"))
    assert refusal(folder) == f"{two}: name 'mine' is also in {one}"


NOT_ONE = "give exactly one of fraction_of_groups, fraction_of_weights, effective_bits, not {}"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (SCHEME, (NOT_ONE.format(0),)),
        (A_SCHEME + "fraction_of_groups: 0.5\n", (NOT_ONE.format(2),)),
        (A_SCHEME + "fraction_of_groups: 1\nfraction_of_weights: 1\n", (NOT_ONE.format(3),)),
        (A_SCHEME + "bits: 8\n", ("unknown key 'bits'", "name, candidates, fraction_of_groups")),
        (A_SCHEME + "effective_bits: 9\n", ("'effective_bits' is written twice", "line 4")),
        ("name: mine\neffective_bits: 8\n", ("key 'candidates' is missing",)),
        ("candidates: [wfp8_afp8]\neffective_bits: 8\n", ("key 'name' is missing",)),
        (A_SCHEME.replace("mine", "../evil"), ("name '../evil' is not safe",)),
        (A_SCHEME.replace("mine", "8"), ("name 8 is not safe",)),
        (A_SCHEME.replace("mine", "a-b"), ("name 'a-b' is not safe",)),
        *[
            (f"name: mine\ncandidates: {given}\neffective_bits: 8\n", ("candidates must be",))
            for given in ("wfp8_afp8", "null", "8", "[8]", "[null]", "{wfp8_afp8: 1}", "[[a]]")
        ],
        ("name: mine\ncandidates: []\neffective_bits: 8\n", ("names no candidate",)),
        (
            "name: mine\ncandidates: [a, a]\neffective_bits: 8\n",
            ("names a candidate twice: a, a",),
        ),
        (
            "name: mine\ncandidates: [a, b]\nfraction_of_groups: 0.5\n",
            ("fraction_of_groups", "2 candidates"),
        ),
        *[
            (f"{SCHEME}{measure}: {raw}\n", (f"{measure} must be a number, not",))
            for measure in ("fraction_of_groups", "fraction_of_weights", "effective_bits")
            for raw in (
                "true",
                "no",
                "null",
                "[8]",
                "{a: 1}",
                "'8'",
                "eight",
                "2026-01-01",
                "1e999",
            )
        ],
        *[
            (f"{SCHEME}fraction_of_weights: {raw}\n", ("fraction_of_weights", "is no fraction"))
            for raw in ("1.5", "-1", "50", ".nan", ".inf", "-.inf")
        ],
        *[
            (f"{SCHEME}effective_bits: {raw}\n", ("effective_bits", "up to 16"))
            for raw in ("0", "-0.0", "-8", "16.5", ".nan", ".inf", "8:30", "9" * 300)
        ],
        (SCHEME + "effective_bits: " + "9" * 5000 + "\n", ("not readable as YAML", "digits")),
        ("name: mine\ncandidates: &a [wfp8_afp8]\neffective_bits: *a\n", ("alias 'a'", "line 3")),
        ("name: mine\ncandidates: &a [*a]\neffective_bits: 8\n", ("alias 'a'",)),
        ("- mine\n", ("must be a mapping",)),
        ("", ("must be a mapping",)),
        ("name: !!python/object:os.system mine\n", ("not readable as YAML",)),
    ],
    ids=lambda given: ascii(given[:40]) if isinstance(given, str) else "",
)
def test_a_mistake_in_a_scheme_is_named_by_file_and_key(conf, text, fragments):
    folder = conf({"scheme/mine.yaml": text})
    message = refusal(folder)
    assert message.startswith(f"{folder / 'scheme' / 'mine.yaml'}: ")
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("raw", ["1" + "0" * 400, "-1" + "0" * 400, "9" * 4200])
@pytest.mark.parametrize("measure", ["fraction_of_groups", "effective_bits"])
def test_an_integer_that_no_float_holds_is_a_mistake_like_any_other(conf, measure, raw):
    folder = conf({"scheme/mine.yaml": f"{SCHEME}{measure}: {raw}\n"})
    message = refusal(folder)
    assert message.startswith(f"{folder / 'scheme' / 'mine.yaml'}: ")
    assert measure in message


def test_a_scheme_alone_is_enough_of_a_folder(conf):
    assert scheme_of(conf, A_SCHEME).amount == 10.0
