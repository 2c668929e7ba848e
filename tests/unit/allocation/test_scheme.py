"""Schemes: which rules are valid, and which formats they select, against brute force."""

import math
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.allocation.scheme import (
    MEASURES,
    Allocation,
    Scheme,
    allocate,
    builtin_schemes,
)
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.vocabulary import load_vocabulary

FRACTIONS = ("fraction_of_groups", "fraction_of_weights")


def scheme(measure="effective_bits", amount=8.0, candidates=("wfp8_afp8",)):
    return Scheme(name="mine", candidates=candidates, measure=measure, amount=amount)


def group(*scores, weights=100, bits=(8.0, 4.125)):
    return ScoredGroup(name="g", scores=scores, bits=bits[: len(scores)], weights=weights)


@st.composite
def scored_groups(draw, most=6, formats=1):
    """Up to ``most`` groups with distinct or equal scores."""
    count = draw(st.integers(1, most))
    return [
        group(
            *(draw(st.integers(0, 9)) / 8 for _ in range(formats)),
            weights=draw(st.integers(1, 5)) * 64,
        )
        for _ in range(count)
    ]


# --- rules


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"candidates": ()}, "candidates must not be empty"),
        ({"candidates": ("a", "b", "a")}, "candidates must not repeat, got a, b, a"),
        *[
            ({"amount": bits}, f"effective_bits must be in (0, 16], got {bits:g}")
            for bits in (0.0, -1.0, 16.01, math.inf, -math.inf, math.nan)
        ],
        *[
            ({"measure": measure, "amount": amount}, f"{measure} must be in [0, 1], got {amount:g}")
            for measure in FRACTIONS
            for amount in (-0.01, 1.01, 50.0, math.inf, math.nan)
        ],
        *[
            (
                {"measure": measure, "amount": 0.5, "candidates": ("a", "b")},
                f"{measure} allows one candidate, got a, b; give one, or use effective_bits",
            )
            for measure in FRACTIONS
        ],
    ],
)
def test_invalid_rule_is_refused_with_the_schemes_name(fields, problem):
    with pytest.raises(UsageError) as caught:
        scheme(**fields)
    assert str(caught.value).startswith(f"scheme 'mine': {problem}")


@pytest.mark.parametrize(
    ("measure", "amount"),
    [
        ("effective_bits", 16.0),
        ("effective_bits", 1e-9),
        ("fraction_of_groups", 0),
        ("fraction_of_groups", 1),
        ("fraction_of_weights", 0),
        ("fraction_of_weights", 1),
    ],
)
def test_ends_of_the_range_are_allowed(measure, amount):
    assert scheme(measure, amount).amount == amount


def test_built_in_schemes_do_what_their_names_say():
    rules = {s.name: (s.candidates, s.measure, s.amount) for s in builtin_schemes().values()}
    assert list(builtin_schemes()) == list(rules)
    fp8 = ("wfp8_afp8",)
    assert rules == {
        "fp8_autoquant_top25": (fp8, "fraction_of_groups", 0.25),
        "fp8_autoquant_top50": (fp8, "fraction_of_groups", 0.5),
        "fp8_autoquant_full": (fp8, "fraction_of_groups", 1.0),
        "fp8_autoquant_weights50": (fp8, "fraction_of_weights", 0.5),
        "fp8_autoquant_bits10": (fp8, "effective_bits", 10.0),
        "fp8_autoquant_bits12": (fp8, "effective_bits", 12.0),
        "int4_fp8_autoquant_bits6": (("wint4_afp16", "wfp8_afp8"), "effective_bits", 6.0),
    }
    assert {c for s in builtin_schemes().values() for c in s.candidates} <= set(
        load_vocabulary().pairs
    )
    assert {s.measure for s in builtin_schemes().values()} == set(MEASURES)


# --- selection by a fraction


def test_least_sensitive_groups_are_quantized_first():
    groups = [group(score, weights=w) for score, w in ((3.0, 10), (1.0, 20), (4.0, 30), (2.0, 40))]
    allocation = allocate(scheme("fraction_of_groups", 0.5), groups)
    assert allocation == Allocation(
        chosen=(None, 0, None, 0),
        score=3.0,
        effective_bits=(40 * 16 + 60 * 8) / 100,
        fraction_of_groups=0.5,
        fraction_of_weights=0.6,
    )


@pytest.mark.parametrize(
    ("amount", "quantized"),
    [(0, 0), (0.1, 0), (0.125, 1), (0.25, 1), (0.37, 1), (0.375, 2), (0.5, 2), (0.99, 4), (1, 4)],
)
def test_number_of_groups_is_nearest_to_the_fraction(amount, quantized):
    groups = [group(float(i)) for i in range(4)]
    allocation = allocate(scheme("fraction_of_groups", amount), groups)
    assert allocation.chosen == tuple(0 if i < quantized else None for i in range(4))
    assert allocation.fraction_of_groups == quantized / 4


@pytest.mark.parametrize(
    ("amount", "quantized"),
    [(0, 0), (0.09, 0), (0.1, 1), (0.29, 1), (0.3, 2), (0.6, 3), (0.999, 3), (1, 4)],
)
def test_quantized_weights_stay_within_the_fraction(amount, quantized):
    groups = [group(float(i), weights=(i + 1) * 10) for i in range(4)]
    allocation = allocate(scheme("fraction_of_weights", amount), groups)
    assert allocation.chosen == tuple(0 if i < quantized else None for i in range(4))
    assert allocation.fraction_of_weights == sum(range(quantized + 1)) / 10


def test_groups_after_one_that_exceeds_the_fraction_are_not_quantized():
    groups = [group(1.0, weights=10), group(2.0, weights=80), group(3.0, weights=10)]
    assert allocate(scheme("fraction_of_weights", 0.2), groups).chosen == (0, None, None)


def test_groups_with_equal_scores_are_quantized_in_module_order():
    groups = [group(1.0) for _ in range(5)]
    assert allocate(scheme("fraction_of_groups", 0.4), groups).chosen == (0, 0, None, None, None)


@settings(deadline=None, max_examples=60)
@given(
    groups=scored_groups(most=12),
    measure=st.sampled_from(FRACTIONS),
    amounts=st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_smaller_fraction_selects_a_subset_of_a_larger_one(groups, measure, amounts):
    quantized = [
        {i for i, c in enumerate(allocate(scheme(measure, a), groups).chosen) if c is not None}
        for a in sorted(amounts)
    ]
    assert all(smaller <= larger for smaller, larger in pairwise(quantized))


# --- selection by bits


def brute_force(groups, budget):
    """The least score of all choices within the budget, None if there is none."""
    total = sum(g.weights for g in groups)
    scores = []
    for choice in product(*(range(len(g.scores) + 1) for g in groups)):
        stored = sum(
            Fraction((*g.bits, 16.0)[i]) * g.weights for g, i in zip(groups, choice, strict=True)
        )
        if stored <= Fraction(budget) * total:
            scores.append(sum((*g.scores, 0.0)[i] for g, i in zip(groups, choice, strict=True)))
    return min(scores, default=None)


@settings(deadline=None, max_examples=80)
@given(
    groups=st.integers(1, 2).flatmap(lambda formats: scored_groups(most=5, formats=formats)),
    budget=st.integers(4 * 16, 16 * 16).map(lambda steps: steps / 16),
)
def test_score_is_the_least_of_all_choices_within_the_bits(groups, budget):
    rule = scheme(amount=budget, candidates=("a", "b")[: len(groups[0].scores)])
    best = brute_force(groups, budget)
    if best is None:
        with pytest.raises(UsageError, match="cannot be reached"):
            allocate(rule, groups)
        return
    allocation = allocate(rule, groups)
    assert allocation.score == pytest.approx(best, rel=1e-12, abs=0)
    assert allocation.effective_bits <= budget * (1 + 1e-12)


def test_allocation_of_two_formats_reports_its_bits_and_fractions():
    groups = [group(1.0, 1.5, weights=100), group(5.0, 50.0, weights=100), group(90.0, 99.0)]
    allocation = allocate(scheme(amount=9.5, candidates=("a", "b")), groups)
    assert allocation.chosen == (1, 0, None)
    assert allocation.score == 6.5
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


@pytest.mark.parametrize("measure", FRACTIONS)
def test_budget_of_16_bits_and_fraction_of_zero_quantize_nothing(measure):
    groups = [group(1.0), group(2.0)]
    unquantized = Allocation(
        chosen=(None, None),
        score=0.0,
        effective_bits=16.0,
        fraction_of_groups=0.0,
        fraction_of_weights=0.0,
    )
    assert allocate(scheme(amount=16.0), groups) == unquantized
    assert allocate(scheme(measure, 0.0), groups) == unquantized


def test_unquantized_is_the_last_candidate_and_scores_zero():
    added = group(3.0, 5.0).with_unquantized()
    assert (added.scores, added.bits) == ((3.0, 5.0, 0.0), (8.0, 4.125, 16.0))
    assert (added.name, added.weights) == ("g", 100)


def test_block_size_that_is_not_a_power_of_two_can_be_mixed():
    """INT4 in blocks of 48 takes 4 + 16/48 bits, which no float holds exactly."""
    groups = [
        group(float(i + 1), 9.0, weights=w, bits=(8.0, 4 + 16 / 48))
        for i, w in enumerate((65536, 131072))
    ]
    allocation = allocate(scheme(amount=8.0, candidates=("a", "b")), groups)
    assert (allocation.chosen, allocation.score) == ((0, 0), 3.0)
