"""Dealing cases: none lost, equal work, pairs kept together, and few tapes."""

import os
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.grid.case import cases
from pytest_autoquant.grid.sharding import Shard, deal_cases
from pytest_autoquant.grid.vocabulary import load_vocabulary

GRID = tuple(cases(load_vocabulary(), SIZES, model="toy", method="gradient"))
PAIRS = sorted({case.combination.pair.name for case in GRID})
GRANULARITIES = sorted({case.combination.granularity.name for case in GRID})


def grid(sizes=tuple(SIZES), pairs=PAIRS, granularities=GRANULARITIES):
    """The cases of part of the grid, in the grid's order."""
    return [
        case
        for case in GRID
        if case.size in sizes
        and case.combination.pair.name in pairs
        and case.combination.granularity.name in granularities
    ]


parts_counts = st.integers(1, 40)
score_sizes = st.sampled_from((1, 16, 50, 128, 512))
some_of_the_grid = st.builds(
    grid,
    sizes=st.sets(st.sampled_from(list(SIZES)), min_size=1),
    pairs=st.sets(st.sampled_from(PAIRS), min_size=1),
    granularities=st.sets(st.sampled_from(GRANULARITIES), min_size=1),
)
any_cases = st.lists(st.sampled_from(GRID), unique_by=lambda case: case.case_id, max_size=60)


def work(case, score_size):
    return min(SIZES[case.size], score_size)


def work_by_part(chosen, dealt, parts, score_size):
    done = Counter(dict.fromkeys(range(parts), 0))
    for case in chosen:
        done[dealt[case.case_id]] += work(case, score_size)
    return done


def parts_by_size(chosen, dealt):
    found = defaultdict(set)
    for case in chosen:
        found[case.size].add(dealt[case.case_id])
    return found


@settings(deadline=None)
@given(chosen=some_of_the_grid | any_cases, parts=parts_counts, score_size=score_sizes)
def test_every_case_has_one_part_and_a_pair_and_size_stay_together(chosen, parts, score_size):
    dealt = deal_cases(chosen, parts, score_size)
    assert dealt.keys() == {case.case_id for case in chosen}
    assert set(dealt.values()) <= set(range(parts))
    places = defaultdict(set)
    for case in chosen:
        places[case.combination.pair.name, case.size].add(dealt[case.case_id])
    pairs = Counter(size for _, size in places)
    assert all(len(place) == 1 for (_, size), place in places.items() if pairs[size] >= parts)


@settings(deadline=None)
@given(chosen=some_of_the_grid, parts=parts_counts, score_size=score_sizes)
@example(chosen=grid(sizes=("small",)), parts=16, score_size=128)
@example(chosen=grid(), parts=32, score_size=128)
def test_work_of_a_part_is_bounded(chosen, parts, score_size):
    # An equal share, and of each size one pair and twice the tenth of a share that a part leaves
    # to its neighbours rather than record another tape.
    equal = sum(work(case, score_size) for case in chosen) / parts
    allowed = equal
    for size in {case.size for case in chosen}:
        pairs = Counter(case.combination.pair.name for case in chosen if case.size == size)
        allowed += 0.2 * equal + max(pairs.values()) * min(SIZES[size], score_size)
    dealt = deal_cases(chosen, parts, score_size)
    assert max(work_by_part(chosen, dealt, parts, score_size).values()) <= allowed * (1 + 1e-9)


@settings(deadline=None)
@given(chosen=some_of_the_grid, parts=parts_counts, score_size=score_sizes)
def test_sizes_are_dealt_to_few_ascending_parts(chosen, parts, score_size):
    tapes = parts_by_size(chosen, deal_cases(chosen, parts, score_size))
    assert sum(map(len, tapes.values())) <= parts + len(tapes) - 1
    for earlier, later in pairwise(tapes.values()):
        assert max(earlier) <= min(later)
    total = sum(work(case, score_size) for case in chosen)
    for size, places in tapes.items():
        width = sum(work(c, score_size) for c in chosen if c.size == size) * parts / total
        assert len(places) <= max(1, width + 1.8 + 1e-9)


@pytest.mark.parametrize("parts", [2, 3, 24])
def test_cases_of_one_size_are_dealt_equally_where_parts_divide_the_pairs(parts):
    dealt = deal_cases(grid(sizes=("medium",)), parts, 128)
    assert Counter(dealt.values()) == dict.fromkeys(range(parts), 240 // parts)


def test_three_parts_of_the_grid_do_equal_work_on_two_sizes_at_most():
    # A large case scores no more captions than a medium one.
    dealt = deal_cases(GRID, 3, 128)
    done = work_by_part(GRID, dealt, 3, 128)
    equal = sum(done.values()) / 3
    assert {part: round(amount / equal, 1) for part, amount in done.items()} == {0: 1, 1: 1, 2: 1}
    tapes = parts_by_size(GRID, dealt)
    assert tapes == {"small": {0}, "medium": {0, 1}, "large": {1, 2}}


def test_work_of_a_case_depends_on_the_captions_it_scores():
    scored_alike = deal_cases(GRID, 3, 16)
    assert parts_by_size(GRID, scored_alike) == {"small": {0}, "medium": {1}, "large": {2}}
    by_captions = parts_by_size(GRID, deal_cases(GRID, 2, 512))
    assert by_captions == {"small": {0}, "medium": {0}, "large": {0, 1}}


def test_fewer_pairs_than_parts_are_dealt_case_by_case():
    chosen = grid(sizes=("small",), pairs=("wint4_aint8",))
    assert len(chosen) == 10
    assert sorted(Counter(deal_cases(chosen, 8, 128).values()).values()) == [1] * 6 + [2] * 2


SCRIPT = """
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.grid.case import cases
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.grid.sharding import deal_cases
grid = tuple(cases(load_vocabulary(), SIZES, model="toy", method="gradient"))
print(list(deal_cases(grid, 7, 128).items()))
"""


def test_every_process_deals_the_same_way():
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment
    )
    here = f"{list(deal_cases(GRID, 7, 128).items())}\n"
    assert (done.stdout, done.stderr) == (here, "")


@pytest.mark.parametrize("text", ["1/1", "2/3", "999999/999999"])
def test_shard_is_parsed_and_printed_alike(text):
    shard = Shard.parse(text)
    assert (str(shard), f"{shard.index}/{shard.count}") == (text, text)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "-1/2", "1/2/3", " 1/2", "1/1000000"])
def test_text_that_is_not_a_shard_is_refused(text):
    with pytest.raises(ValueError, match="shard must be I/N with I in 1 to N, got"):
        Shard.parse(text)
