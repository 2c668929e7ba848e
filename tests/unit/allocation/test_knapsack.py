"""Selection under a bit budget, against every possible choice and against greedy ones."""

from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.allocation import knapsack as selection
from pytest_autoquant.allocation.knapsack import Candidate, frontier, select

UNQUANTIZED = Candidate(score=0.0, bits=16.0)
FORMAT_BITS = (4.0, 4.125, 4.25, 4.5, 8.0, 16.0)

# Weights and budgets as language models and users have them, not as a solver's tolerance likes.
weight_counts = st.integers(1, 6).map(lambda blocks: blocks * 65536)
budgets = st.integers(3 * 64, 17 * 64).map(lambda steps: steps / 64)
magnitudes = st.sampled_from((1e3, 1.0, 1e-6, 1e-9, 1e-12))


@st.composite
def problems(draw, most_groups, most_candidates=4):
    """Groups of any number of candidates, whose scores are all of one magnitude, and a budget."""
    magnitude = draw(magnitudes)
    candidate = st.builds(
        Candidate,
        score=st.integers(0, 999).map(lambda score: score * magnitude),
        bits=st.sampled_from(FORMAT_BITS),
    )
    group = st.lists(candidate, min_size=1, max_size=most_candidates)
    groups = draw(st.lists(group, min_size=1, max_size=most_groups))
    weights = draw(st.lists(weight_counts, min_size=len(groups), max_size=len(groups)))
    return groups, weights, draw(budgets)


def stored_bits(groups, weights, chosen):
    return sum(
        Fraction(group[i].bits) * weight
        for group, i, weight in zip(groups, chosen, weights, strict=True)
    )


def total_score(groups, chosen):
    return sum(group[i].score for group, i in zip(groups, chosen, strict=True))


def best_score(groups, weights, budget):
    """The least score of all choices within the budget, None where there is none."""
    room = Fraction(budget) * sum(weights)
    choices = product(*(range(len(group)) for group in groups))
    return min(
        (total_score(groups, c) for c in choices if stored_bits(groups, weights, c) <= room),
        default=None,
    )


def quantize_or_keep(scores, bits=4.125):
    return [(Candidate(score=score, bits=bits), UNQUANTIZED) for score in scores]


def greedy(groups, weights, budget, order):
    """Quantize group after group until the budget is met, the cheapest by ``order`` first."""
    chosen = [1] * len(groups)
    room = Fraction(budget) * sum(weights)
    for i in sorted(range(len(groups)), key=lambda i: order(groups[i][0].score, weights[i])):
        if stored_bits(groups, weights, chosen) <= room:
            break
        chosen[i] = 0
    return total_score(groups, chosen)


@settings(deadline=None, max_examples=150)
@given(problem=problems(most_groups=5))
def test_no_choice_within_the_budget_is_better(problem):
    groups, weights, budget = problem
    selection = select(groups, weights, budget)
    best = best_score(groups, weights, budget)
    assert selection.is_satisfied == (best is not None)
    if best is not None:
        assert selection.score == pytest.approx(best, rel=1e-9, abs=0)
        assert stored_bits(groups, weights, selection.chosen) <= Fraction(budget) * sum(weights)


@settings(deadline=None, max_examples=60)
@given(problem=problems(most_groups=30))
def test_the_numbers_are_those_of_the_choice(problem):
    groups, weights, budget = problem
    selection = select(groups, weights, budget)
    bits = stored_bits(groups, weights, selection.chosen) / sum(weights)
    least = [min(candidate.bits for candidate in group) for group in groups]
    reachable = sum(b * w for b, w in zip(least, weights, strict=True)) / sum(weights)
    assert selection.score == pytest.approx(total_score(groups, selection.chosen), rel=1e-12)
    assert selection.effective_bits == pytest.approx(float(bits), rel=1e-12)
    assert selection.minimum_effective_bits == pytest.approx(reachable, rel=1e-12)
    if not selection.is_satisfied:
        assert reachable > budget
        assert selection.effective_bits == selection.minimum_effective_bits


@settings(deadline=None, max_examples=40)
@given(
    scores=st.lists(st.integers(1, 10**6), min_size=20, max_size=150),
    magnitude=magnitudes,
    budget=st.integers(5 * 64, 15 * 64).map(lambda steps: steps / 64),
    data=st.data(),
)
def test_no_greedy_choice_is_better(scores, magnitude, budget, data):
    weights = data.draw(st.lists(weight_counts, min_size=len(scores), max_size=len(scores)))
    groups = quantize_or_keep([score * magnitude for score in scores])
    selection = select(groups, weights, budget)
    assert selection.effective_bits <= budget
    for order in (
        lambda score, weight: score,
        lambda score, weight: score / weight,
        lambda score, weight: -weight,
    ):
        assert selection.score <= greedy(groups, weights, budget, order) * (1 + 1e-9)


@settings(deadline=None, max_examples=30)
@given(problem=problems(most_groups=20), more=st.lists(budgets, min_size=2, max_size=5))
def test_more_bits_never_give_a_worse_score(problem, more):
    groups, weights, budget = problem
    found = [select(groups, weights, b) for b in sorted([budget, *more])]
    scores = [selection.score for selection in found if selection.is_satisfied]
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(scores))


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-9, 1e-12, 1e-30])
def test_the_magnitude_of_the_scores_changes_nothing(unit):
    groups = quantize_or_keep([score * unit for score in (5.0, 4.0, 3.0, 3.5)])
    # 600 weights: 291 of them must be quantized, and the three small groups hurt more than the one.
    selection = select(groups, [100, 100, 100, 300], budget=10.25)
    assert selection.chosen == (1, 1, 1, 0)
    assert selection.score == 3.5 * unit


@settings(deadline=None, max_examples=60)
@given(
    exponents=st.lists(st.floats(-12, 0), min_size=2, max_size=8),
    data=st.data(),
)
def test_scores_over_twelve_decades_are_all_told_apart(exponents, data):
    weights = data.draw(st.lists(weight_counts, min_size=len(exponents), max_size=len(exponents)))
    budget = data.draw(st.integers(5 * 64, 16 * 64).map(lambda steps: steps / 64))
    groups = quantize_or_keep([10**exponent for exponent in exponents])
    best = best_score(groups, weights, budget)
    assert select(groups, weights, budget).score == pytest.approx(best, rel=1e-6, abs=0)


def test_a_group_too_sensitive_to_quantize_does_not_blur_the_others():
    groups = quantize_or_keep([1.0, 3e-12, 1e-12, 2e-12])
    assert select(groups, [100] * 4, budget=14.0).chosen == (1, 1, 0, 1)


@pytest.mark.parametrize("quantized", list(product((0, 1), repeat=4)))
def test_a_budget_that_a_choice_fills_exactly_allows_it(quantized):
    groups = [
        (Candidate(score=1.0 if keep else 0.0, bits=4.125), Candidate(score=0.5, bits=16.0))
        for keep in quantized
    ]
    weights = [2560 * 4096, 2560 * 1024, 2560 * 9728, 2560 * 2560]
    budget = float(stored_bits(groups, weights, quantized) / sum(weights))
    selection = select(groups, weights, budget)
    assert selection.chosen == quantized
    assert selection.effective_bits == budget


def test_a_budget_a_hair_below_a_choice_excludes_that_choice_and_no_other():
    scores = [0.78, 0.63, 0.39, 0.88, 0.04]
    weights = [131072, 131072, 262144, 65536, 262144]
    groups = quantize_or_keep(scores)
    filled = float(stored_bits(groups, weights, (1, 1, 1, 1, 0)) / sum(weights))
    for below in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5):
        budget = filled * (1 - 2 * below)
        selection = select(groups, weights, budget)
        assert selection.effective_bits <= budget, below
        assert selection.score == pytest.approx(best_score(groups, weights, budget)), below


@pytest.mark.parametrize("budget", [1.0, 5.0, 5.3749])
def test_a_budget_below_every_choice_gives_the_smallest_and_least_harmful_and_says_so(budget):
    groups = [
        (Candidate(score=2.0, bits=8.0), Candidate(score=9.0, bits=4.5), UNQUANTIZED),
        (Candidate(score=3.0, bits=8.0), Candidate(score=1.0, bits=8.0), UNQUANTIZED),
    ]
    selection = select(groups, [300, 100], budget)
    assert not selection.is_satisfied
    assert selection.chosen == (1, 1)
    assert selection.effective_bits == selection.minimum_effective_bits == 5.375
    assert selection.score == 10.0
    assert select(groups, [300, 100], 5.375).is_satisfied


def test_nothing_is_quantized_when_the_budget_has_room_for_everything():
    selection = select(quantize_or_keep([1e-9, 2e-9]), [64, 64], budget=16.0)
    assert (selection.chosen, selection.score) == ((1, 1), 0.0)


def modelopt_selection(loss_scale, budget):
    """The groups that ``mtq.auto_quantize`` scored on eight Linears, and what it chose of each."""
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
        [
            Candidate(score=score, bits=16 * cost / group["uncompressed_cost"])
            for score, cost in zip(group["scores"], group["costs"], strict=True)
        ]
        for group in stats.values()
    ]
    chosen = tuple(group["formats"].index(recipes[name]) for name, group in stats.items())
    return groups, [linear.weight.numel() for linear in linears], chosen


def test_modelopt_selects_worse_layers_than_ours_when_scores_are_small():
    budget = 11.0
    groups, weights, theirs = modelopt_selection(2.0**12, budget)
    assert all(1e-7 < group[0].score < 1e-5 for group in groups)
    ours = select(groups, weights, budget)
    for chosen in (theirs, ours.chosen):
        assert stored_bits(groups, weights, chosen) <= budget * sum(weights)
    assert ours.score == pytest.approx(best_score(groups, weights, budget), rel=1e-9, abs=0)
    assert total_score(groups, theirs) > 1.2 * ours.score

    # A loss 32 times as large makes each score 1024 times as large and changes nothing else.
    larger, _, theirs_when_larger = modelopt_selection(2.0**17, budget)
    for group, scaled in zip(groups, larger, strict=True):
        assert scaled[0].score == pytest.approx(1024 * group[0].score)
        assert [c.bits for c in scaled] == [c.bits for c in group]
    assert theirs_when_larger == ours.chosen


# Many budgets at once


def same(groups, weights, budgets):
    """The frontier, each point of it as good as the solver's own answer for its budget."""
    found = frontier(groups, weights, budgets)
    assert len(found) == len(budgets)
    for point, budget in zip(found, budgets, strict=True):
        alone = select(groups, weights, budget)
        assert point.is_satisfied == alone.is_satisfied
        assert point.minimum_effective_bits == alone.minimum_effective_bits
        assert point.score == pytest.approx(alone.score, rel=1e-9, abs=0)
        assert point.score == pytest.approx(total_score(groups, point.chosen), rel=1e-12)
        bits = stored_bits(groups, weights, point.chosen) / sum(weights)
        assert point.effective_bits == pytest.approx(float(bits), rel=1e-12)
        if point.is_satisfied:
            assert bits <= Fraction(budget) * (1 + Fraction(1, 10**12))
        else:
            assert point == alone
    return found


@settings(deadline=None, max_examples=80)
@given(problem=problems(most_groups=5), more=st.lists(budgets, max_size=4))
def test_every_point_of_a_frontier_is_the_best_choice_within_its_budget(problem, more):
    groups, weights, budget = problem
    for point, each in zip(same(groups, weights, [budget, *more]), [budget, *more], strict=True):
        best = best_score(groups, weights, each)
        assert point.is_satisfied == (best is not None)
        if best is not None:
            assert point.score == pytest.approx(best, rel=1e-9, abs=0)


@settings(deadline=None, max_examples=25)
@given(problem=problems(most_groups=30), more=st.lists(budgets, min_size=1, max_size=4))
def test_a_frontier_of_many_groups_is_what_the_solver_finds(problem, more):
    groups, weights, budget = problem
    same(groups, weights, [budget, *more])


def test_no_budget_has_no_frontier_and_one_has_one_point():
    groups = quantize_or_keep([1.0, 2.0])
    assert frontier(groups, [64, 128], []) == ()
    (point,) = frontier(groups, [64, 128], [12.5])
    assert (point.chosen, point.score) == ((0, 1), 1.0)
    assert point.effective_bits == pytest.approx((64 * 4.125 + 128 * 16) / 192)


def test_budgets_in_any_order_and_given_twice_keep_their_places():
    groups = quantize_or_keep([4.0, 2.0, 1.0])
    found = same(groups, [64, 64, 64], [16.0, 4.125, 9.0, 16.0, 12.5])
    assert [point.score for point in found] == [0.0, 7.0, 3.0, 0.0, 1.0]


def test_budgets_that_nothing_meets_say_the_smallest_choice_beside_those_that_something_does():
    groups = quantize_or_keep([4.0, 2.0])
    low, high, none = frontier(groups, [64, 64], [4.0, 16.0, 0.0])
    assert [p.is_satisfied for p in (low, high, none)] == [False, True, False]
    assert low == none
    assert (low.chosen, low.effective_bits, low.score) == ((0, 0), 4.125, 6.0)
    assert frontier(groups, [64, 64], [4.0])[0] == select(groups, [64, 64], 4.0)


def test_candidates_that_store_the_same_leave_only_the_score_to_choose_by():
    groups = [[Candidate(score=s, bits=16.0) for s in (3.0, 1.0, 1.0)], [UNQUANTIZED]]
    (point,) = same(groups, [64, 64], [16.0])
    assert (point.chosen, point.effective_bits) == ((1, 0), 16.0)


def test_ties_between_groups_are_worth_the_same_whichever_is_taken():
    groups = quantize_or_keep([1.0] * 6)
    found = same(groups, [64] * 6, [16.0 - i for i in range(12)])
    assert [point.score for point in found] == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_ragged_groups_have_a_frontier():
    groups = [
        [Candidate(score=5.0, bits=4.125), Candidate(score=1.0, bits=8.0), UNQUANTIZED],
        [UNQUANTIZED],
        [Candidate(score=2.0, bits=4.25), UNQUANTIZED],
        [Candidate(score=0.5, bits=8.0)],
    ]
    found = same(groups, [256, 64, 128, 64], [b / 4 for b in range(20, 65, 3)])
    assert found[0].minimum_effective_bits == pytest.approx(
        (256 * 4.125 + 64 * 16 + 128 * 4.25 + 64 * 8) / 512
    )


def test_groups_without_a_common_size_fall_back_to_the_solver(monkeypatch):
    asked = []

    def recorded(groups, weights, budget):
        asked.append(budget)
        return select(groups, weights, budget)

    groups, weights = quantize_or_keep([3.0, 2.0, 1.0]), [10**12 + 39, 10**12 + 61, 10**12 + 63]
    expected = [select(groups, weights, b) for b in (16.0, 10.0, 5.0)]
    monkeypatch.setattr(selection, "select", recorded)
    assert list(frontier(groups, weights, [16.0, 10.0, 5.0])) == expected
    assert asked == [16.0, 10.0, 5.0]
    assert [point.score for point in expected] == [0.0, 3.0, 6.0]


def test_a_language_model_of_billions_of_weights_needs_no_solver(monkeypatch):
    """Qwen3-VL-4B: 36 layers of q/k/v, o, gate/up and down, in FP8 or INT4."""
    shapes = (4096 * 2560 + 2 * 1024 * 2560, 4096 * 2560, 2 * 9728 * 2560, 9728 * 2560)
    weights = [weight for _ in range(36) for weight in shapes]
    scores = [(37 * i % 101 + 1) / 7 for i in range(len(weights))]
    groups = [
        [Candidate(score=9 * s, bits=4.125), Candidate(score=s, bits=8.0), UNQUANTIZED]
        for s in scores
    ]
    expected = [select(groups, weights, budget).score for budget in (5.5, 9.0)]
    monkeypatch.setattr(selection, "select", None)
    found = frontier(groups, weights, [5.5, 9.0])
    assert [point.score for point in found] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("budget", [8.0, 9.0, 10.0])
def test_a_group_may_have_more_candidates_than_a_byte_counts(budget):
    row = [Candidate(score=1000.0 - i, bits=4 + i / 32) for i in range(200)]
    same([[*row, UNQUANTIZED] for _ in range(3)], [128] * 3, [budget])


def test_blocks_whose_bits_no_float_holds_are_selected_and_have_a_frontier():
    """INT4 in blocks of 48 stores 4 + 1/3 bits per weight."""
    formats = [Candidate(score=9.0, bits=4 + 16 / 48), Candidate(score=2.0, bits=8.0), UNQUANTIZED]
    for found in (
        select([formats, formats], [65536, 131072], 8.0),
        frontier([formats, formats], [65536, 131072], [8.0])[0],
    ):
        assert (found.chosen, found.score) == ((1, 1), 4.0)
