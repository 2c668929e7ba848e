"""Cases: the grid, its ids and its order, and schemes as cases."""

from dataclasses import replace

import pytest
from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.case import Case, CaseId, Combination, cases, combinations, scheme_cases
from pytest_autoquant.grid.vocabulary import load_vocabulary, select_vocabulary

VOCABULARY = load_vocabulary()


def grid(vocabulary=VOCABULARY, sizes=tuple(SIZES), model="tiny-qwen3-vl", method="gradient"):
    return list(cases(vocabulary, sizes, model=model, method=method))


def test_sizes_are_16_128_and_512_captions():
    assert list(SIZES.items()) == [("small", 16), ("medium", 128), ("large", 512)]


def test_ids_of_a_case_name_its_parts():
    combination = Combination(
        pair=VOCABULARY.pairs["wint4_aint8"], granularity=VOCABULARY.granularities["w_group64"]
    )
    case = Case(model="qwen3-vl-4b", combination=combination, size="small", method="kl_div")
    assert combination.test_id == "wint4_aint8-w_group64"
    assert combination.combinations == case.combinations == (combination,)
    assert case.test_id == "wint4_aint8-w_group64-small"
    assert case.case_id == "qwen3-vl-4b/wint4_aint8/w_group64/small/kl_div"


@pytest.mark.parametrize("model", ["toy", "org/toy"])
def test_case_id_is_split_into_its_parts(model):
    (case,) = grid(select_vocabulary(VOCABULARY, ["wfp8_afp8"], ["default"]), ["small"], model)
    assert CaseId.parse(case.case_id) == CaseId(
        case_id=case.case_id,
        model=model,
        pair="wfp8_afp8",
        granularity="default",
        size="small",
        method="gradient",
    )


@pytest.mark.parametrize("text", ["", "toy", "toy/schemes/full/small"])
def test_text_that_is_not_a_case_id_is_not_split(text):
    assert CaseId.parse(text) is None


def test_grid_is_every_pair_under_every_overlay_in_every_size():
    everything = grid()
    assert len(everything) == 24 * 10 * 3
    assert len({case.test_id for case in everything}) == 720
    assert len({case.case_id for case in everything}) == 720
    assert {(case.model, case.method) for case in everything} == {("tiny-qwen3-vl", "gradient")}


def test_cases_are_ordered_by_size_and_then_by_pair():
    few = select_vocabulary(VOCABULARY, ["wfp8_afp8", "wint8_aint8"], ["default", "w_group64"])
    assert [case.test_id for case in grid(few, ("small", "large"))] == [
        "wfp8_afp8-default-small",
        "wfp8_afp8-w_group64-small",
        "wint8_aint8-default-small",
        "wint8_aint8-w_group64-small",
        "wfp8_afp8-default-large",
        "wfp8_afp8-w_group64-large",
        "wint8_aint8-default-large",
        "wint8_aint8-w_group64-large",
    ]
    assert list(combinations(few)) == [case.combination for case in grid(few)][:4]


def test_case_ids_depend_on_model_and_method_and_test_ids_do_not():
    gradient, divergence = grid(method="gradient"), grid(method="kl_div")
    assert [case.test_id for case in gradient] == [case.test_id for case in divergence]
    assert not {case.case_id for case in gradient} & {case.case_id for case in divergence}
    assert not {case.case_id for case in gradient} & {case.case_id for case in grid(model="mine")}


# --- schemes


def with_scheme(*candidates):
    scheme = Scheme(name="mine", candidates=candidates, measure="effective_bits", amount=8.0)
    return replace(VOCABULARY, schemes={**VOCABULARY.schemes, "mine": scheme})


def schemes(*selected, vocabulary=VOCABULARY):
    return scheme_cases(vocabulary, selected, model="toy", size="medium")


@pytest.mark.parametrize("selected", [(), ("all",), ("fp8_autoquant_full", "all")])
def test_every_scheme_is_a_case_if_none_or_all_is_selected(selected):
    assert [case.scheme for case in schemes(*selected)] == list(VOCABULARY.schemes.values())
    assert {(case.model, case.size) for case in schemes(*selected)} == {("toy", "medium")}


def test_selected_schemes_keep_the_order_given_without_duplicates():
    selected = schemes("fp8_autoquant_full", "fp8_autoquant_top25", "fp8_autoquant_full")
    assert [case.test_id for case in selected] == ["fp8_autoquant_full", "fp8_autoquant_top25"]


def test_ids_of_a_scheme_case_name_model_scheme_and_size():
    (case,) = schemes("int4_fp8_autoquant_bits6")
    assert case.test_id == "int4_fp8_autoquant_bits6"
    assert case.case_id == "toy/schemes/int4_fp8_autoquant_bits6/medium"
    assert [c.test_id for c in case.combinations] == ["wint4_afp16-default", "wfp8_afp8-default"]


def test_candidate_is_a_pair_under_the_named_or_the_default_overlay():
    vocabulary = with_scheme("wint8_afp16", "wint4_afp16-w_group64", "wfp8_afp8-default")
    (case,) = schemes("mine", vocabulary=vocabulary)
    assert [c.test_id for c in case.candidates] == [
        "wint8_afp16-default",
        "wint4_afp16-w_group64",
        "wfp8_afp8-default",
    ]
    assert case.candidates[1].pair is VOCABULARY.pairs["wint4_afp16"]


def test_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        schemes("fp8_autoquant_top5")
    message = str(caught.value)
    assert message.startswith("scheme 'fp8_autoquant_top5' is unknown (did you mean 'fp8_auto")
    assert all(name in message for name in VOCABULARY.schemes)
    assert message.endswith("add it as YAML under scheme/ and pass --aq-conf")


@pytest.mark.parametrize(
    ("candidate", "problem"),
    [
        ("wfp9_afp8", "pair 'wfp9_afp8' is unknown"),
        ("", "pair '' is unknown"),
        ("-default", "pair '' is unknown"),
        ("wfp8_afp8-w_group63", "overlay 'w_group63' is unknown"),
        ("wfp8_afp8-default-small", "overlay 'default-small' is unknown"),
    ],
)
def test_candidate_that_is_not_a_known_pair_and_overlay_is_refused(candidate, problem):
    with pytest.raises(UsageError) as caught:
        schemes("mine", vocabulary=with_scheme(candidate))
    assert str(caught.value).startswith(f"scheme 'mine': candidate {candidate!r}: {problem}")
