"""Cases: the grid, its ids and its order, and schemes as cases."""

from dataclasses import replace

import pytest
from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.case import Case, CaseId, Combination, cases, combinations, scheme_cases
from pytest_autoquant.grid.vocabulary import load_vocabulary, select_vocabulary

VOCABULARY = load_vocabulary()


@pytest.mark.parametrize("model", ["qwen3-vl-4b", "org/toy"])
def test_ids_of_a_case_name_its_parts(model):
    combination = Combination(
        pair=VOCABULARY.pairs["wint4_aint8"], granularity=VOCABULARY.granularities["w_group64"]
    )
    case = Case(model=model, combination=combination, size="small", method="kl_div")
    assert combination.test_id == "wint4_aint8-w_group64"
    assert combination.combinations == case.combinations == (combination,)
    assert case.test_id == "wint4_aint8-w_group64-small"
    assert case.case_id == f"{model}/wint4_aint8/w_group64/small/kl_div"
    assert CaseId.parse(case.case_id) == CaseId(
        case_id=case.case_id,
        model=model,
        pair="wint4_aint8",
        granularity="w_group64",
        size="small",
        method="kl_div",
    )


@pytest.mark.parametrize("text", ["", "toy", "toy/schemes/full/small"])
def test_text_that_is_not_a_case_id_is_not_split(text):
    assert CaseId.parse(text) is None


def test_grid_is_every_pair_under_every_overlay_in_every_size():
    grid = list(cases(VOCABULARY, SIZES, model="toy", method="gradient"))
    assert len({case.test_id for case in grid}) == len(grid) == 24 * 10 * 3
    assert {(case.model, case.method) for case in grid} == {("toy", "gradient")}


def test_cases_are_ordered_by_size_and_then_by_pair():
    few = select_vocabulary(VOCABULARY, ["wfp8_afp8", "wint8_aint8"], ["default", "w_group64"])
    grid = list(cases(few, ("small", "large"), model="toy", method="gradient"))
    assert [case.test_id for case in grid] == [
        f"{pair}-{granularity}-{size}"
        for size in ("small", "large")
        for pair in ("wfp8_afp8", "wint8_aint8")
        for granularity in ("default", "w_group64")
    ]
    assert list(combinations(few)) == [case.combination for case in grid][:4]


# --- schemes


def schemes(*selected, candidates=("wfp8_afp8",)):
    """Scheme cases from the built-in schemes and ``mine``."""
    mine = Scheme(name="mine", candidates=candidates, measure="effective_bits", amount=8.0)
    vocabulary = replace(VOCABULARY, schemes={**VOCABULARY.schemes, "mine": mine})
    return scheme_cases(vocabulary, selected, model="toy", size="medium")


@pytest.mark.parametrize("selected", [(), ("fp8_autoquant_full", "all")])
def test_every_scheme_is_a_case_if_none_or_all_is_selected(selected):
    names = [case.scheme.name for case in schemes(*selected)]
    assert names == [*VOCABULARY.schemes, "mine"]


def test_selected_schemes_keep_the_order_given_without_duplicates():
    names = ("mine", "fp8_autoquant_full", "fp8_autoquant_top25")
    assert [case.test_id for case in schemes(*names, "mine")] == list(names)


def test_scheme_case_has_an_id_and_candidates_under_the_named_or_the_default_overlay():
    candidates = ("wint8_afp16", "wint4_afp16-w_group64", "wfp8_afp8-default")
    (case,) = schemes("mine", candidates=candidates)
    assert case.case_id == "toy/schemes/mine/medium"
    names = ["wint8_afp16-default", "wint4_afp16-w_group64", "wfp8_afp8-default"]
    assert [each.test_id for each in case.combinations] == names
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
        ("-default", "pair '' is unknown"),
        ("wfp8_afp8-default-small", "overlay 'default-small' is unknown"),
    ],
)
def test_candidate_that_is_not_a_known_pair_and_overlay_is_refused(candidate, problem):
    with pytest.raises(UsageError) as caught:
        schemes("mine", candidates=(candidate,))
    assert str(caught.value).startswith(f"scheme 'mine': candidate {candidate!r}: {problem}")
