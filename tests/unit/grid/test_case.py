"""Cases: the grid, its ids and its order, and the selection by name."""

from dataclasses import replace

import pytest
from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.case import (
    Case,
    Combination,
    cases,
    combinations,
    scheme_cases,
    select_sizes,
    select_vocabulary,
)
from pytest_autoquant.grid.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()


def grid(vocabulary=VOCABULARY, sizes=tuple(SIZES), model="tiny-qwen3-vl", method="gradient"):
    return list(cases(vocabulary, sizes, model=model, method=method))


def test_sizes_are_16_128_and_512_captions():
    assert list(SIZES.items()) == [("small", 16), ("medium", 128), ("large", 512)]


def test_ids_name_what_is_measured_in_a_stable_way():
    combination = Combination(
        pair=VOCABULARY.pairs["wint4_aint8"], granularity=VOCABULARY.granularities["w_group64"]
    )
    case = Case(model="qwen3-vl-4b", combination=combination, size="small", method="kl_div")
    assert combination.id == "wint4_aint8-w_group64"
    assert case.id == "wint4_aint8-w_group64-small"
    assert case.case_id == "qwen3-vl-4b/wint4_aint8/w_group64/small/kl_div"


def test_the_grid_is_every_pair_under_every_overlay_in_every_size():
    found = grid()
    assert len(found) == 24 * 10 * 3
    assert len({case.id for case in found}) == len({case.case_id for case in found}) == 720
    assert {(case.model, case.method) for case in found} == {("tiny-qwen3-vl", "gradient")}


def test_cases_come_size_by_size_and_then_pair_by_pair():
    few = select_vocabulary(VOCABULARY, ["wfp8_afp8", "wint8_aint8"], ["default", "w_group64"])
    assert [case.id for case in grid(few, ("small", "large"))] == [
        "wfp8_afp8-default-small",
        "wfp8_afp8-w_group64-small",
        "wint8_aint8-default-small",
        "wint8_aint8-w_group64-small",
        "wfp8_afp8-default-large",
        "wfp8_afp8-w_group64-large",
        "wint8_aint8-default-large",
        "wint8_aint8-w_group64-large",
    ]
    assert [one.id for one in combinations(few)] == [case.combination.id for case in grid(few)][:4]


def test_models_and_methods_tell_case_ids_apart_but_not_test_ids():
    gradient, divergence = grid(method="gradient"), grid(method="kl_div")
    assert [case.id for case in gradient] == [case.id for case in divergence]
    assert not {case.case_id for case in gradient} & {case.case_id for case in divergence}
    assert not {case.case_id for case in gradient} & {case.case_id for case in grid(model="mine")}


def test_selecting_nothing_keeps_everything():
    assert select_vocabulary(VOCABULARY, (), ()) == VOCABULARY
    assert select_sizes(()) == ("small", "medium", "large")


def test_a_selection_keeps_the_vocabularys_order_and_no_duplicates():
    picked = select_vocabulary(
        VOCABULARY, ["wint4_aint8", "wfp8_afp8", "wint4_aint8"], ["w_group64", "default"]
    )
    assert list(picked.pairs) == ["wfp8_afp8", "wint4_aint8"]
    assert list(picked.granularities) == ["default", "w_group64"]
    assert picked.pairs["wint4_aint8"] is VOCABULARY.pairs["wint4_aint8"]
    assert select_sizes(["large", "small", "large"]) == ("small", "large")


@pytest.mark.parametrize(
    ("pairs", "granularities", "fragments"),
    [
        (["wint4_aint9"], [], ("pair 'wint4_aint9'", "'wint4_aint", "quant_pair/", "wfp16_aint8")),
        (["WFP8_AFP8"], [], ("pair 'WFP8_AFP8'", "wfp8_afp8")),
        ([], ["default", "w_group96"], ("overlay 'w_group96'", "quant_granularity/", "w_group64")),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones_and_the_way_to_add_it(
    pairs, granularities, fragments
):
    with pytest.raises(UsageError) as caught:
        select_vocabulary(VOCABULARY, pairs, granularities)
    message = str(caught.value)
    assert all(fragment in message for fragment in (*fragments, "--aq-conf")), message


def test_an_unknown_size_is_refused_with_a_guess():
    with pytest.raises(UsageError, match=r"size 'smal' .*'small'.*small, medium, large"):
        select_sizes(["smal"])


# Schemes


def with_scheme(*candidates):
    scheme = Scheme(name="mine", candidates=candidates, measure="effective_bits", amount=8.0)
    return replace(VOCABULARY, schemes={**VOCABULARY.schemes, "mine": scheme})


def schemes(*selected, vocabulary=VOCABULARY):
    return scheme_cases(vocabulary, selected, model="toy", size="medium")


def test_every_scheme_is_a_case_if_none_is_selected():
    assert [case.scheme for case in schemes()] == list(VOCABULARY.schemes.values())
    assert {(case.model, case.size) for case in schemes()} == {("toy", "medium")}


def test_selected_schemes_come_in_the_order_they_are_given():
    assert [case.id for case in schemes("fp8_autoquant_full", "fp8_autoquant_top25")] == [
        "fp8_autoquant_full",
        "fp8_autoquant_top25",
    ]


def test_a_scheme_case_is_named_by_model_scheme_and_size():
    (case,) = schemes("int4_fp8_autoquant_bits6")
    assert case.id == "int4_fp8_autoquant_bits6"
    assert case.case_id == "toy/schemes/int4_fp8_autoquant_bits6/medium"
    assert [c.id for c in case.candidates] == ["wint4_afp16-default", "wfp8_afp8-default"]


def test_a_candidate_is_a_pair_with_the_default_overlay_or_with_the_one_named():
    vocabulary = with_scheme("wint8_afp16", "wint4_afp16-w_group64", "wfp8_afp8-default")
    (case,) = schemes("mine", vocabulary=vocabulary)
    assert [c.id for c in case.candidates] == [
        "wint8_afp16-default",
        "wint4_afp16-w_group64",
        "wfp8_afp8-default",
    ]
    assert case.candidates[1].pair is VOCABULARY.pairs["wint4_afp16"]


def test_an_unknown_scheme_is_refused_with_the_known_ones_and_the_way_to_add_it():
    with pytest.raises(UsageError) as caught:
        schemes("fp8_autoquant_top5")
    message = str(caught.value)
    assert message.startswith("scheme 'fp8_autoquant_top5' is unknown (did you mean 'fp8_auto")
    assert all(name in message for name in VOCABULARY.schemes)
    assert message.endswith("add it as YAML under scheme/ and pass --aq-conf")


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("wfp9_afp8", "candidate 'wfp9_afp8' is unknown"),
        ("", "candidate '' is unknown"),
        ("-default", "candidate '' is unknown"),
        ("wfp8_afp8-w_group63", "overlay 'w_group63' is unknown"),
        ("wfp8_afp8-default-small", "overlay 'default-small' is unknown"),
    ],
)
def test_a_candidate_that_is_no_pair_and_overlay_is_refused(candidate, said):
    with pytest.raises(UsageError) as caught:
        schemes("mine", vocabulary=with_scheme(candidate))
    assert str(caught.value).startswith(f"scheme 'mine': {said}")


def test_an_unknown_candidate_is_refused_with_its_schemes_name():
    with pytest.raises(UsageError, match=r"^scheme 'mine': candidate 'wfp9_afp8' is unknown"):
        schemes("mine", vocabulary=with_scheme("wfp9_afp8"))


def test_a_scheme_selected_twice_is_one_case():
    found = schemes("fp8_autoquant_full", "fp8_autoquant_top25", "fp8_autoquant_full")
    assert len(found) == len({case.case_id for case in found}) == 2
