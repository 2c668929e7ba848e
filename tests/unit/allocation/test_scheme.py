"""Schemes: which rules are valid, and which formats they select."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.allocation.scheme import (
    MEASURES,
    Allocation,
    Scheme,
    allocate,
    builtin_schemes,
    check_reachable,
)
from pytest_autoquant.allocation.scored_group import COSTS, ScoredGroup
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.vocabulary import load_vocabulary

FRACTIONS = ("fraction_of_groups", "fraction_of_weights")


def scheme(measure="effective_bits", amount=8.0, candidates=("wfp8_afp8",)):
    return Scheme(name="mine", candidates=candidates, measure=measure, amount=amount)


def group(*scores, weights=100, bits=(8.0, 4.125)):
    return ScoredGroup(name="g", scores=scores, bits=bits[: len(scores)], weights=weights)


# --- rules


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"candidates": ()}, "candidates must not be empty"),
        ({"candidates": ("a", "b", "a")}, "candidates must not repeat, got a, b, a"),
        *[
            ({"amount": bits}, f"effective_bits must be in (0, 16], got {bits:g}")
            for bits in (0.0, 16.01, -math.inf, math.nan)
        ],
        *[
            ({"measure": measure, "amount": amount}, f"{measure} must be in [0, 1], got {amount:g}")
            for measure in FRACTIONS
            for amount in (-0.01, 1.01, math.inf, math.nan)
        ],
        (
            {"measure": "fraction_of_groups", "amount": 0.5, "candidates": ("a", "b")},
            "fraction_of_groups allows one candidate, got a, b; give one, or use effective_bits or "
            "max_kl, which select among several",
        ),
        *[
            (
                {"measure": "max_kl", "amount": amount},
                f"max_kl must be above 0, in nats per token, got {amount:g}",
            )
            for amount in (0.0, -0.1, math.inf, math.nan)
        ],
    ],
)
def test_invalid_rule_is_refused_with_the_schemes_name(fields, problem):
    with pytest.raises(UsageError) as caught:
        scheme(**fields)
    assert str(caught.value).startswith(f"scheme 'mine': {problem}")


def test_built_in_schemes_do_what_their_names_say():
    rules = {name: (s.measure, s.amount) for name, s in builtin_schemes().items()}
    assert rules == {
        "fp8_autoquant_top25": ("fraction_of_groups", 0.25),
        "fp8_autoquant_top50": ("fraction_of_groups", 0.5),
        "fp8_autoquant_full": ("fraction_of_groups", 1.0),
        "fp8_autoquant_weights50": ("fraction_of_weights", 0.5),
        "fp8_autoquant_bits10": ("effective_bits", 10.0),
        "fp8_autoquant_bits12": ("effective_bits", 12.0),
        "int4_fp8_autoquant_bits6": ("effective_bits", 6.0),
    }
    assert {measure for measure, _ in rules.values()} == {*MEASURES} - {"max_kl"}
    for name, each in builtin_schemes().items():
        pairs = ("wint4_afp16", "wfp8_afp8") if name.startswith("int4_") else ("wfp8_afp8",)
        assert (each.name, each.candidates) == (name, pairs)
        assert set(pairs) <= set(load_vocabulary().pairs)


# --- selection by a fraction


def test_least_sensitive_groups_are_quantized_first():
    groups = [group(score, weights=w) for score, w in ((3.0, 10), (1.0, 20), (4.0, 30), (2.0, 40))]
    assert allocate(scheme("fraction_of_groups", 0.5), groups) == Allocation(
        chosen=(None, 0, None, 0),
        score=3.0,
        effective_bits=(40 * 16 + 60 * 8) / 100,
        fraction_of_groups=0.5,
        fraction_of_weights=0.6,
    )


@pytest.mark.parametrize(
    ("amount", "quantized"),
    [(0, 0), (0.1, 0), (0.125, 1), (0.37, 1), (0.375, 2), (0.5, 2), (0.99, 4), (1, 4)],
)
def test_number_of_groups_is_nearest_to_the_fraction(amount, quantized):
    """Groups of equal scores are quantized in module order."""
    allocation = allocate(scheme("fraction_of_groups", amount), [group(1.0) for _ in range(4)])
    assert allocation.chosen == tuple(0 if i < quantized else None for i in range(4))
    assert allocation.fraction_of_groups == quantized / 4


@pytest.mark.parametrize(
    ("amount", "quantized"), [(0, 0), (0.1, 1), (0.29, 1), (0.3, 2), (0.999, 3), (1, 4)]
)
def test_quantized_weights_stay_within_the_fraction(amount, quantized):
    groups = [group(float(i), weights=(i + 1) * 10) for i in range(4)]
    allocation = allocate(scheme("fraction_of_weights", amount), groups)
    assert allocation.chosen == tuple(0 if i < quantized else None for i in range(4))
    assert allocation.fraction_of_weights == sum(range(quantized + 1)) / 10


def test_groups_after_one_that_exceeds_the_fraction_are_not_quantized():
    groups = [group(1.0, weights=10), group(2.0, weights=80), group(3.0, weights=10)]
    assert allocate(scheme("fraction_of_weights", 0.2), groups).chosen == (0, None, None)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=12),
    measure=st.sampled_from(FRACTIONS),
    amounts=st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_smaller_fraction_selects_a_subset_of_a_larger_one(sizes, measure, amounts):
    groups = [group(score / 8, weights=weights * 64) for score, weights in sizes]
    quantized = [
        {i for i, c in enumerate(allocate(scheme(measure, a), groups).chosen) if c is not None}
        for a in sorted(amounts)
    ]
    assert all(smaller <= larger for smaller, larger in pairwise(quantized))


# --- selection by bits


def test_allocation_of_two_formats_reports_its_bits_and_fractions():
    groups = [group(1.0, 1.5, weights=100), group(5.0, 50.0, weights=100), group(90.0, 99.0)]
    allocation = allocate(scheme(amount=9.5, candidates=("a", "b")), groups)
    assert (allocation.chosen, allocation.score) == ((1, 0, None), 6.5)
    assert allocation.effective_bits == pytest.approx((4.125 + 8 + 16) / 3)
    assert allocation.fraction_of_groups == allocation.fraction_of_weights == pytest.approx(2 / 3)


def test_budget_that_cannot_be_reached_is_refused_with_the_minimum():
    groups = [group(1.0, 2.0, weights=300), group(1.0, 2.0, weights=100)]
    with pytest.raises(UsageError) as caught:
        allocate(scheme(amount=4.0, candidates=("wfp8_afp8", "wint4_afp16")), groups)
    assert str(caught.value) == (
        "scheme 'mine': effective_bits 4 cannot be reached with wfp8_afp8, wint4_afp16; "
        "give at least 4.125, or a candidate with fewer bits"
    )
    allocation = allocate(scheme(amount=4.125, candidates=("wfp8_afp8", "wint4_afp16")), groups)
    assert (allocation.chosen, allocation.effective_bits) == ((1, 1), 4.125)


@pytest.mark.parametrize(("measure", "amount"), [("effective_bits", 16), (FRACTIONS[1], 0)])
def test_budget_of_16_bits_and_fraction_of_zero_quantize_nothing(measure, amount):
    assert allocate(scheme(measure, amount), [group(1.0), group(2.0)]) == Allocation(
        chosen=(None, None),
        score=0.0,
        effective_bits=16.0,
        fraction_of_groups=0.0,
        fraction_of_weights=0.0,
    )


def test_group_keeps_to_the_candidates_that_it_can_take():
    """The second candidate has fewer bits and a lower score, and the first group cannot take it."""
    groups = [
        replace(group(2.0, 1.0, weights=96), left_out=frozenset(left_out))
        for left_out in ({1}, (), {0, 1})
    ]
    both = scheme(amount=10.0, candidates=("a", "b"))
    allocation = allocate(both, groups)
    assert (allocation.chosen, allocation.score) == ((0, 1, None), 3.0)
    assert allocation.effective_bits == pytest.approx((8 + 4.125 + 16) / 3)
    with pytest.raises(UsageError, match=r"cannot be reached with a, b; give at least 9\.375,"):
        allocate(replace(both, amount=9.37), groups)
    some = [replace(each, scores=(1.0,), bits=(8.0,)) for each in groups]
    for measure in FRACTIONS:
        assert allocate(scheme(measure, 2 / 3), some).chosen == (0, 0, None)
    with pytest.raises(UsageError) as caught:
        check_reachable(scheme("fraction_of_groups", 1.0), some)
    assert str(caught.value) == (
        "scheme 'mine': fraction_of_groups 1 asks for 3 of 3 layer groups and only 2 can take "
        "wfp8_afp8; give at most 0.6666"
    )
    with pytest.raises(UsageError, match="no layer group can take a or b"):
        allocate(replace(both, amount=16.0), groups[2:])


def test_fewest_bits_need_a_candidate_that_stores_fewer_than_16():
    """Of a pair that quantizes activations only, every selection stores 16 bits."""
    groups, rule = [group(1.0, 2.0, bits=(16.0, 8.0))], scheme("max_kl", 0.1, ("a", "b"))
    assert allocate(rule, groups).chosen == (1,)
    with pytest.raises(UsageError, match="no layer group stores fewer than 16 per weight with a;"):
        allocate(replace(rule, candidates=("a",)), [group(1.0, bits=(16.0,))])


def test_unquantized_is_the_last_candidate_and_scores_zero():
    added = group(3.0, 5.0).with_unquantized()
    assert (added.scores, added.bits) == ((3.0, 5.0, 0.0), (8.0, 4.125, 16.0))
    assert (added.name, added.weights) == ("g", 100)


@pytest.mark.parametrize(
    ("measure", "amount", "chosen"),
    [
        ("fraction_of_groups", 1.0, (None, 0, 0)),
        ("fraction_of_groups", 0.34, (None, 0, None)),
        ("fraction_of_weights", 1.0, (None, 0, 0)),
        ("effective_bits", 11.0, (None, 0, 0)),
    ],
)
def test_group_that_must_stay_unquantized_is_passed_over(measure, amount, chosen):
    dead = replace(group(0.0), left_out=frozenset({0}))
    found = allocate(scheme(measure, amount), [dead, group(1.0), group(2.0)])
    assert found.chosen == chosen
    assert found.fraction_of_groups == sum(each is not None for each in chosen) / 3


def test_active_budget_counts_what_a_token_is_multiplied_with():
    """The experts' score is high for what they save of a token's bits, low for what they store."""
    experts = replace(group(1.0, weights=800), active_weights=100)
    groups = [group(0.2, weights=100), experts]
    stored, active = (allocate(scheme(amount=12.0), groups, cost) for cost in COSTS)
    assert (stored.chosen, active.chosen) == ((None, 0), (0, None))
    assert stored.effective_bits == pytest.approx((1600 + 6400) / 900)
    assert active.effective_bits == pytest.approx((800 + 12800) / 900)
    assert stored.active_bits == active.active_bits == 12.0
    assert allocate(scheme(), [group(1.0)]).active_bits is None
