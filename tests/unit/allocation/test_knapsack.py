"""Selection under a bit budget, against brute force, a MILP solver and ModelOpt's selection."""

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.allocation.knapsack import (
    ExactFrontier,
    select_formats,
    select_formats_by_budget,
)
from pytest_autoquant.allocation.scored_group import ScoredGroup
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

FORMAT_BITS = (4.0, 4.125, 4.25, 4.5, 8.0, 16.0)

# Weights and budgets that occur in language models, not multiples chosen to suit a solver.
weight_counts = st.integers(1, 6).map(lambda blocks: blocks * 65536)
budgets = st.integers(3 * 64, 17 * 64).map(lambda steps: steps / 64)


def group(*candidates, weights=64):
    """A group of (score, bits) candidates."""
    scores, bits = zip(*candidates, strict=True)
    return ScoredGroup(name="g", scores=scores, bits=bits, weights=weights)


def quantize_or_not(scores, weights, bits=4.125):
    """Groups of two candidates: quantized is 0, unquantized is 1."""
    return [
        group((score, bits), (0.0, 16.0), weights=count)
        for score, count in zip(scores, weights, strict=True)
    ]


@st.composite
def problems(draw, most_groups):
    """Groups with scores of one magnitude, and up to five budgets."""
    magnitude = draw(st.sampled_from((1e3, 1.0, 1e-6, 1e-9, 1e-12)))
    candidate = st.tuples(
        st.integers(0, 999).map(lambda score: score * magnitude), st.sampled_from(FORMAT_BITS)
    )
    one = st.builds(
        lambda candidates, weights: group(*candidates, weights=weights),
        st.lists(candidate, min_size=1, max_size=4),
        weight_counts,
    )
    groups = draw(st.lists(one, min_size=1, max_size=most_groups))
    return groups, draw(st.lists(budgets, min_size=1, max_size=5))


def stored_bits(groups, chosen):
    return sum(Fraction(g.bits[i]) * g.weights for g, i in zip(groups, chosen, strict=True))


def num_weights(groups):
    return sum(g.weights for g in groups)


def total_score(groups, chosen):
    return sum(g.scores[i] for g, i in zip(groups, chosen, strict=True))


def brute_force(groups, budget):
    """The least score of all choices within the budget, None if there is none."""
    allowed = Fraction(budget) * num_weights(groups)
    choices = product(*(range(len(g.scores)) for g in groups))
    return min(
        (total_score(groups, c) for c in choices if stored_bits(groups, c) <= allowed), default=None
    )


def milp_score(groups, budget):
    """The least score by HiGHS; scores must be of one magnitude, sizes multiples of 65536."""
    owner = np.repeat(np.arange(len(groups)), [len(g.scores) for g in groups])
    scores = np.concatenate([g.scores for g in groups])
    units = np.concatenate([np.array(g.bits) * 8 * g.weights / 65536 for g in groups])
    count = len(owner)
    result = milp(
        scores / (scores.max() or 1.0) * 1e3,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(csr_array((np.ones(count), (owner, np.arange(count)))), 1, 1),
            LinearConstraint(units[None, :], -np.inf, budget * 8 * num_weights(groups) / 65536),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return None if result.x is None else float(scores[result.x > 0.5].sum())


def check_numbers(groups, budget, selection):
    """The selection's numbers are those of its chosen candidates."""
    bits = stored_bits(groups, selection.chosen) / num_weights(groups)
    minimum = sum(min(g.bits) * g.weights for g in groups) / num_weights(groups)
    assert selection.score == pytest.approx(total_score(groups, selection.chosen), rel=1e-12)
    assert selection.effective_bits == pytest.approx(float(bits), rel=1e-12)
    assert selection.minimum_effective_bits == pytest.approx(minimum, rel=1e-12)
    if selection.is_satisfied:
        assert bits <= Fraction(budget) * (1 + Fraction(1, 10**12))
    else:
        assert minimum > budget
        assert selection.effective_bits == selection.minimum_effective_bits


# --- the selection is optimal


def check_least(problem, least_score, rel, of_largest):
    """Compare the score at every budget with another solver's."""
    groups, amounts = problem
    for selection, budget in zip(select_formats_by_budget(groups, amounts), amounts, strict=True):
        check_numbers(groups, budget, selection)
        best = least_score(groups, budget)
        assert selection.is_satisfied == (best is not None)
        if best is not None:
            largest = max(max(g.scores) for g in groups)
            assert selection.score == pytest.approx(best, rel=rel, abs=of_largest * largest)


@settings(deadline=None, max_examples=60)
@given(problem=problems(most_groups=4))
def test_score_is_the_least_of_all_choices_at_every_budget(problem):
    check_least(problem, brute_force, rel=1e-9, of_largest=0)


@settings(deadline=None, max_examples=25)
@given(problem=problems(most_groups=30))
def test_score_of_many_groups_equals_the_milp_solvers(problem):
    check_least(problem, milp_score, rel=1e-6, of_largest=1e-9)


@settings(deadline=None, max_examples=30)
@given(exponents=st.lists(st.floats(-12, 0), min_size=2, max_size=7), data=st.data())
def test_scores_twelve_decades_apart_are_compared_exactly(exponents, data):
    weights = data.draw(st.lists(weight_counts, min_size=len(exponents), max_size=len(exponents)))
    budget = data.draw(st.integers(5 * 64, 16 * 64).map(lambda steps: steps / 64))
    groups = quantize_or_not([10**exponent for exponent in exponents], weights)
    expected = brute_force(groups, budget)
    assert select_formats(groups, budget).score == pytest.approx(expected, rel=1e-6, abs=0)


def test_group_with_a_large_score_does_not_hide_differences_between_small_scores():
    groups = quantize_or_not([1.0, 3e-12, 1e-12, 2e-12], [100] * 4)
    assert select_formats(groups, budget=14.0).chosen == (1, 1, 0, 1)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e-30])
def test_selection_does_not_depend_on_the_unit_of_the_scores(unit):
    # 291 of 600 weights must be quantized: the three small groups score more than the large one.
    groups = quantize_or_not([s * unit for s in (5.0, 4.0, 3.0, 3.5)], [100, 100, 100, 300])
    selection = select_formats(groups, budget=10.25)
    assert (selection.chosen, selection.score) == ((1, 1, 1, 0), 3.5 * unit)


# --- budgets


@pytest.mark.parametrize("chosen", [(0, 0, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1), (1, 1, 1, 1)])
def test_budget_equal_to_the_stored_bits_is_met(chosen):
    weights = [2560 * 4096, 2560 * 1024, 2560 * 9728, 2560 * 2560]
    groups = [
        group((1.0 if i else 0.0, 4.125), (0.5, 16.0), weights=count)
        for i, count in zip(chosen, weights, strict=True)
    ]
    budget = float(stored_bits(groups, chosen) / sum(weights))
    selection = select_formats(groups, budget)
    assert (selection.chosen, selection.effective_bits) == (chosen, budget)


@pytest.mark.parametrize("below", [1e-12, 1e-9, 1e-5])
def test_budget_slightly_below_the_stored_bits_excludes_that_choice_only(below):
    weights = [131072, 131072, 262144, 65536, 262144]
    groups = quantize_or_not([0.78, 0.63, 0.39, 0.88, 0.04], weights)
    budget = float(stored_bits(groups, (1, 1, 1, 1, 0)) / num_weights(groups)) * (1 - 2 * below)
    selection = select_formats(groups, budget)
    assert selection.effective_bits <= budget
    assert selection.score == pytest.approx(brute_force(groups, budget))


@pytest.mark.parametrize("budget", [0.0, 5.3749])
def test_budget_that_cannot_be_met_selects_the_smallest_candidates(budget):
    groups = [
        group((2.0, 8.0), (9.0, 4.5), (0.0, 16.0), weights=300),
        group((3.0, 8.0), (1.0, 8.0), (0.0, 16.0), weights=100),
    ]
    selection = select_formats(groups, budget)
    assert not selection.is_satisfied
    assert (selection.chosen, selection.score) == ((1, 1), 10.0)
    assert selection.effective_bits == selection.minimum_effective_bits == 5.375
    assert select_formats(groups, 5.375).is_satisfied


@settings(deadline=None)
@given(problem=problems(most_groups=4))
def test_frontier_has_every_number_of_bits_that_lowers_the_least_score(problem):
    groups, (most, *_) = problem
    choices = list(product(*(range(len(g.scores)) for g in groups)))
    allowed = [c for c in choices if stored_bits(groups, c) <= Fraction(most) * num_weights(groups)]
    sizes = sorted({stored_bits(groups, c) for c in allowed})
    least = [
        min(total_score(groups, c) for c in allowed if stored_bits(groups, c) <= size)
        for size in sizes
    ]
    expected = [
        float(size / num_weights(groups))
        for place, size in enumerate(sizes)
        if place == 0 or least[place] < least[place - 1] * (1 - 1e-12)
    ]
    frontier = ExactFrontier(groups, most)
    found = [frontier[place] for place in range(len(frontier))]
    assert [each.effective_bits for each in found] == pytest.approx(list(frontier.bits))
    if expected:
        assert frontier.bits == pytest.approx(expected)
        for each in found:
            score = brute_force(groups, each.effective_bits * (1 + 1e-12))
            assert each.score == pytest.approx(score, rel=1e-9)


def test_selections_keep_the_order_of_the_budgets():
    groups = quantize_or_not([4.0, 2.0, 1.0], [64, 64, 64])
    selections = select_formats_by_budget(groups, [16.0, 4.125, 9.0, 0.0, 16.0, 12.5])
    assert [selection.score for selection in selections] == [0.0, 7.0, 3.0, 7.0, 0.0, 1.0]
    assert [s.is_satisfied for s in selections] == [True, True, True, False, True, True]
    assert select_formats_by_budget(groups, []) == ()


# --- groups


def test_candidates_with_equal_bits_are_selected_by_score():
    groups = [group((3.0, 16.0), (1.0, 16.0), (1.0, 16.0)), group((0.0, 16.0))]
    selection = select_formats(groups, 16.0)
    assert (selection.chosen, selection.effective_bits) == ((1, 0), 16.0)


def test_groups_may_have_hundreds_of_candidates():
    row = [(1000.0 - i, 4 + i / 32) for i in range(200)]
    groups = [group(*row, (0.0, 16.0), weights=65536) for _ in range(3)]
    assert select_formats(groups, 9.0).score == pytest.approx(milp_score(groups, 9.0))


def test_groups_without_a_common_size_are_selected_exactly():
    groups = quantize_or_not([3.0, 2.0, 1.0], [10**12 + 39, 10**12 + 61, 10**12 + 63])
    selections = select_formats_by_budget(groups, [16.0, 10.0, 5.0])
    assert [selection.score for selection in selections] == [0.0, 3.0, 6.0]


def test_bits_that_are_not_floats_are_compared_exactly():
    """INT4 in blocks of 48 stores 4 + 1/3 bits per weight."""
    candidates = (9.0, 4 + 16 / 48), (2.0, 8.0), (0.0, 16.0)
    groups = [group(*candidates, weights=48 * 1024), group(*candidates, weights=48 * 2048)]
    selection = select_formats(groups, 8.0)
    assert (selection.chosen, selection.score) == ((1, 1), 4.0)


# --- ModelOpt's own selection


def modelopt_selection(loss_scale, budget):
    """The groups that ``mtq.auto_quantize`` scored on eight Linears, and its selection."""
    import modelopt.torch.quantization as mtq
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = (64, 96, 32, 128, 64, 160, 32, 96, 64)
        linears = [torch.nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
        batch = torch.randn(8, widths[0], requires_grad=True)
    _, state = mtq.auto_quantize(
        torch.nn.Sequential(*linears),
        constraints={"effective_bits": budget},
        quantization_formats=[mtq.INT8_DEFAULT_CFG],
        data_loader=[batch],
        forward_step=lambda model, batch: model(batch),
        loss_func=lambda output, batch: output.square().mean() * loss_scale,
        num_calib_steps=1,
        num_score_steps=1,
    )
    assert state["best"]["is_satisfied"]
    stats, recipes = state["candidate_stats"], state["best"]["recipe"]
    groups = [
        ScoredGroup(
            name=name,
            scores=tuple(stat["scores"]),
            bits=tuple(16 * cost / stat["uncompressed_cost"] for cost in stat["costs"]),
            weights=linear.weight.numel(),
        )
        for (name, stat), linear in zip(stats.items(), linears, strict=True)
    ]
    return groups, tuple(stat["formats"].index(recipes[name]) for name, stat in stats.items())


@pytest.mark.slow
def test_modelopt_selects_worse_groups_when_scores_are_small():
    budget = 11.0
    groups, theirs = modelopt_selection(2.0**12, budget)
    assert all(1e-7 < g.scores[0] < 1e-5 for g in groups)
    ours = select_formats(groups, budget)
    for chosen in (theirs, ours.chosen):
        assert stored_bits(groups, chosen) <= budget * num_weights(groups)
    assert ours.score == pytest.approx(brute_force(groups, budget), rel=1e-9, abs=0)
    assert total_score(groups, theirs) > 1.2 * ours.score

    # A loss 32 times as large makes each score 1024 times as large and changes nothing else.
    larger, theirs_when_larger = modelopt_selection(2.0**17, budget)
    for one, scaled in zip(groups, larger, strict=True):
        assert scaled.scores[0] == pytest.approx(1024 * one.scores[0])
        assert scaled.bits == one.bits
    assert theirs_when_larger == ours.chosen
