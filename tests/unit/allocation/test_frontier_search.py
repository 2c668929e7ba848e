"""The search for the fewest bits whose measured damage passes, along the exact frontier."""

import math

import pytest
from pytest_autoquant.allocation.frontier_search import MOST_MEASUREMENTS, search_frontier
from pytest_autoquant.allocation.scored_group import ScoredGroup


def groups_of(count):
    """Groups of which every choice is on the frontier: score and bits saved are in proportion."""
    return [
        ScoredGroup(name=f"g{i}", scores=(2.0**i,), bits=(8.0,), weights=2**i) for i in range(count)
    ]


def by_bits(allocation):
    return 16 - allocation.effective_bits


class Bench:
    """Counts what is measured."""

    def __init__(self, kl):
        self.kl, self.measured = kl, []

    def __call__(self, allocation):
        self.measured.append(allocation)
        return self.kl(allocation)


@pytest.mark.parametrize("limit", [0.11, 1.0, 3.21, 7.9])
def test_fewest_bits_of_all_selections_are_found_where_damage_falls_with_bits(limit):
    bench = Bench(by_bits)
    search = search_frontier(groups_of(8), limit, bench)
    assert search.num_selections == 255
    all_bits = [8 + 8 * taken / 255 for taken in range(255)]
    fewest = min(bits for bits in all_bits if 16 - bits <= limit)
    assert search.found.effective_bits == pytest.approx(fewest)
    assert search.num_unmeasured == 0
    assert [step.allocation for step in search.steps] == bench.measured
    assert [step.passed for step in search.steps] == [step.kl <= limit for step in search.steps]
    assert len(bench.measured) <= 9


def test_everything_quantized_is_measured_first_and_ends_the_search_if_it_passes():
    search = search_frontier(groups_of(8), 8.0, Bench(by_bits))
    (step,) = search.steps
    assert step.allocation.fraction_of_groups == 1.0
    assert (search.found, search.num_unmeasured) == (step.allocation, 0)


def test_number_of_measurements_is_bounded_and_what_was_not_measured_is_counted():
    search = search_frontier(groups_of(16), 3.0, Bench(by_bits))
    assert (search.num_selections, len(search.steps)) == (2**16 - 1, MOST_MEASUREMENTS)
    assert 13 <= search.found.effective_bits < 13 + 8 / 2**11
    fails = max(s.allocation.effective_bits for s in search.steps if not s.passed)
    step = 8 / (2**16 - 1)
    between = (search.found.effective_bits - fails) / step - 1
    assert search.num_unmeasured == pytest.approx(between)
    assert search.num_unmeasured > 0


def test_result_passes_where_damage_rises_and_falls_with_bits():
    def wavy(allocation):
        return 8 - by_bits(allocation) if math.sin(9 * by_bits(allocation)) > 0 else 1.0

    search = search_frontier(groups_of(10), 2.0, wavy)
    passing = [s.allocation.effective_bits for s in search.steps if s.passed]
    assert passing
    assert search.found.effective_bits == min(passing)
    assert wavy(search.found) <= 2.0


@pytest.mark.parametrize("damage", [math.nan, math.inf, 0.5])
def test_nothing_is_found_where_only_the_unquantized_model_passes(damage):
    def all_fail(allocation):
        return 0.25 if len(bench.measured) == 4 else damage

    bench = Bench(all_fail)
    search = search_frontier(groups_of(6), 0.1, bench)
    assert search.found is None
    assert search.closest.allocation == bench.measured[3]
    assert all(step.allocation.fraction_of_groups > 0 for step in search.steps)


def test_group_that_cannot_take_a_candidate_stays_unquantized():
    first, second = (
        ScoredGroup(name=n, scores=(1.0, 4.0), bits=(8.0, 4.125), weights=64, left_out=left_out)
        for n, left_out in (("a", frozenset({1})), ("b", frozenset({0, 1})))
    )
    search = search_frontier([first, second], 9.0, Bench(by_bits))
    assert search.num_selections == 1
    assert search.found.chosen == (0, None)
