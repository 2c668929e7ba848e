"""The vocabulary: built-in definitions joined with the user's files, and selected by name."""

import subprocess
import sys
from dataclasses import replace

import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.vocabulary import load_vocabulary, select_sizes, select_vocabulary

BUILTIN = load_vocabulary()

PAIR = "name: {name}\nweight: int4\nactivation: int8\n"
OVERLAY = "name: {name}\nquant_cfg_overrides:\n  '*weight_quantizer': {{axis: 0}}\n"
SCHEME = "name: {name}\ncandidates: [wfp8_afp8]\nfraction_of_groups: 0.25\n"
KINDS = [
    ("quant_pair", PAIR, "pairs"),
    ("quant_granularity", OVERLAY, "granularities"),
    ("scheme", SCHEME, "schemes"),
]

#: Built-in definitions as users keep them in files, in the style of Hydra configs.
SAMPLES = {
    "quant_pair/wint4_aint8.yaml": """
        # comments, one key a line
        name: wint4_aint8

        weight: int4
        activation: int8
        format_name: INT4_WEIGHT_INT8_ACT_CFG
        experimental: true
    """,
    "quant_granularity/w_group128.yml": """
        name: w_group128
        quant_cfg_overrides:
          "*weight_quantizer":
            block_sizes:
              "-1": 128
    """,
    "scheme/half.yaml": """
        name: fp8_autoquant_top50
        candidates: [wfp8_afp8]
        fraction_of_groups: 0.5
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


# --- joining


def test_built_in_vocabulary_has_24_pairs_10_overlays_and_7_schemes():
    kinds = (BUILTIN.pairs, BUILTIN.granularities, BUILTIN.schemes)
    assert [len(names) for names in kinds] == [24, 10, 7]
    assert next(iter(BUILTIN.granularities)) == "default"


def test_files_that_repeat_built_ins_are_the_built_ins(conf):
    vocabulary = load_vocabulary(conf(SAMPLES))
    assert vocabulary == BUILTIN
    assert list(vocabulary.pairs) == list(BUILTIN.pairs)
    assert list(vocabulary.granularities) == list(BUILTIN.granularities)


@pytest.mark.parametrize(("folder", "text", "kind"), KINDS)
def test_user_definitions_follow_the_built_in_ones_in_file_order(conf, folder, text, kind):
    files = {
        f"{folder}/b.yaml": text.format(name="later"),
        f"{folder}/a.yml": text.format(name="sooner"),
        f"{folder}/README.md": "not YAML",
    }
    vocabulary = load_vocabulary(conf(files))
    for each in ("pairs", "granularities", "schemes"):
        added = ["sooner", "later"] if each == kind else []
        assert list(getattr(vocabulary, each)) == [*getattr(BUILTIN, each), *added]


@pytest.mark.parametrize(("folder", "text", "kind"), KINDS)
def test_name_defined_in_two_files_is_refused_with_both(conf, folder, text, kind):
    path = conf({f"{folder}/{file}.yaml": text.format(name="mine") for file in ("one", "two")})
    one, two = (path / folder / f"{file}.yaml" for file in ("one", "two"))
    assert refusal(path) == f"{two}: name 'mine' is already defined in {one}"


def test_built_in_that_two_files_repeat_is_refused(conf):
    text = SAMPLES["quant_pair/wint4_aint8.yaml"]
    message = refusal(conf({"quant_pair/a.yaml": text, "quant_pair/b.yaml": text}))
    assert "name 'wint4_aint8' is already defined in" in message


REDEFINED = {
    "quant_pair/a.yaml": (
        PAIR.format(name="wfp8_afp8"),
        "weight is int4, built in fp8, activation is int8, built in fp8, format_name is "
        "INT4_WEIGHT_INT8_ACT_CFG, built in FP8_DEFAULT_CFG; leave format_name out to compose "
        "INT4_WEIGHT_INT8_ACT_CFG, or choose another name",
    ),
    "quant_pair/b.yaml": (
        "{name: wfp4_afp8, weight: fp4, activation: fp8, format_name: W4A8_NVFP4_FP8_CFG}",
        "format_name is W4A8_NVFP4_FP8_CFG, built in W4A8_MXFP4_FP8_CFG; for NVFP4 use the "
        "built-in pair wnvfp4_afp8 (fp4 is MXFP4 here), or give nvfp4 and leave format_name out, "
        "or choose another name",
    ),
    "quant_granularity/c.yaml": (
        OVERLAY.format(name="w_group64"),
        "*weight_quantizer is {'axis': 0}, built in {'block_sizes': {-1: 64}}; choose another name",
    ),
    "scheme/d.yaml": (
        SCHEME.format(name="fp8_autoquant_top50"),
        "fraction_of_groups is 0.25, built in 0.5; choose another name",
    ),
}


def test_every_redefinition_of_a_built_in_is_named_with_both_values(conf):
    """A file that is not valid hides none of them, and none of them hides it."""
    path = conf({name: text for name, (text, _) in REDEFINED.items()} | {"scheme/e.yaml": "[]"})
    *lines, invalid = refusal(path).splitlines()
    for line, (file, (_, differing)) in zip(lines, REDEFINED.items(), strict=True):
        assert line.startswith(f"{path / file}: name '")
        assert line.endswith(f"' is built in and defined differently: {differing}")
    assert invalid.startswith(f"{path / 'scheme/e.yaml'}: must be a mapping")


@pytest.mark.parametrize(
    ("flag", "is_experimental"),
    [("experimental: false\n", False), ("experimental: true\n", True), ("", True)],
)
def test_flag_of_a_file_that_repeats_a_built_in_counts(conf, flag, is_experimental):
    text = "name: wfp8_afp16\nweight: fp8\nactivation: fp16\n" + flag
    vocabulary = load_vocabulary(conf({"quant_pair/x.yaml": text}))
    expected = replace(BUILTIN.pairs["wfp8_afp16"], experimental=is_experimental)
    assert vocabulary.pairs == {**BUILTIN.pairs, "wfp8_afp16": expected}


def test_keys_of_other_tools_are_ignored_with_a_note(conf):
    text = PAIR.format(name="mine")
    more = "scheme_name: x\ncoverage_mode: lm_default\npublish_run_dir: a_${b}\n"
    path = conf({"quant_pair/x.yaml": text + more, "quant_pair/y.yaml": text.replace("mine", "y")})
    vocabulary = load_vocabulary(path)
    (note,) = vocabulary.notes
    assert note == (
        f"{path / 'quant_pair/x.yaml'}: ignored: scheme_name, coverage_mode, publish_run_dir"
    )
    assert vocabulary.pairs["mine"] == replace(vocabulary.pairs["y"], name="mine")


@pytest.mark.parametrize(("folder", "text", "kind"), KINDS)
def test_a_single_file_is_a_pair_an_overlay_or_a_scheme_by_its_keys(conf, folder, text, kind):
    path = conf({"mine.yaml": text.format(name="mine"), "broken.yaml": "[1]"})
    vocabulary = load_vocabulary(path / "mine.yaml")
    assert set(getattr(vocabulary, kind)) - set(getattr(BUILTIN, kind)) == {"mine"}
    assert refusal(path / "broken.yaml").startswith(f"{path / 'broken.yaml'}: must be a mapping")


@pytest.mark.parametrize(("folder", "text", "kind"), KINDS)
def test_invalid_file_is_refused_by_name(conf, folder, text, kind):
    path = conf({f"{folder}/mine.yaml": text.format(name="mine") + "extra: 1\n"})
    assert refusal(path).startswith(f"{path / folder / 'mine.yaml'}: unknown key 'extra'; allowed")


def test_folder_without_definitions_is_refused_with_the_folders_it_may_have(conf):
    path = conf({"quant_pairs/x.yaml": PAIR.format(name="mine")})
    kinds = "quant_pair, quant_granularity, scheme"
    assert refusal(path) == (
        f"--aq-conf {path}: must have at least one of the folders {kinds}; to use a single file, "
        "give its path"
    )
    missing = path / "missing"
    assert refusal(missing) == (
        f"--aq-conf {missing}: no such file or folder; give a YAML file, or a folder with {kinds}"
    )


def test_built_in_vocabulary_is_loaded_without_yaml_pydantic_and_numpy():
    script = (
        "import sys\n"
        "from pytest_autoquant.grid.vocabulary import load_vocabulary\n"
        "load_vocabulary()\n"
        "print({'yaml', 'pydantic', 'numpy'} & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


# --- selecting


def test_selecting_no_name_keeps_everything():
    assert select_vocabulary(BUILTIN, (), ()) == BUILTIN
    assert select_sizes(()) == ("small", "medium", "large")


def test_selection_keeps_the_vocabularys_order_without_duplicates():
    selected = select_vocabulary(
        BUILTIN, ["wint4_aint8", "wfp8_afp8", "wint4_aint8"], ["w_group64", "default"]
    )
    assert list(selected.pairs) == ["wfp8_afp8", "wint4_aint8"]
    assert list(selected.granularities) == ["default", "w_group64"]
    assert selected.pairs["wint4_aint8"] is BUILTIN.pairs["wint4_aint8"]
    assert selected.schemes == BUILTIN.schemes
    assert select_sizes(["large", "small", "large"]) == ("small", "large")


@pytest.mark.parametrize(
    ("select", "start", "end"),
    [
        (
            lambda: select_vocabulary(BUILTIN, ["WFP8_AFP8"], []),
            "pair 'WFP8_AFP8' is unknown",
            "quant_pair/ and pass --aq-conf",
        ),
        (
            lambda: select_vocabulary(BUILTIN, [], ["default", "w_group96"]),
            "overlay 'w_group96' is unknown (did you mean 'w_group64",
            "quant_granularity/ and pass --aq-conf",
        ),
        (
            lambda: select_sizes(["smal"]),
            "size 'smal' is unknown (did you mean 'small'?)",
            "; known: small, medium, large; give one or more of these",
        ),
    ],
)
def test_unknown_name_is_refused_with_the_known_ones(select, start, end):
    with pytest.raises(UsageError) as caught:
        select()
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)
