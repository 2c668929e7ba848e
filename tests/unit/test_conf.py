"""The user's own pairs and overlays: read from YAML, mistakes named by file and key."""

import pytest

from harness.conf import load_vocabulary
from harness.errors import VocabularyError

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
    with pytest.raises(VocabularyError) as caught:
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
    assert "has neither quant_pair/ nor quant_granularity/" in message
