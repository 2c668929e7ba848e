"""The best selection at 64 budgets at once, and at one budget.

Qwen3-VL-4B has 144 groups; 250 groups in five formats are more than any scheme has.

pytest benchmarks/bench_frontier.py -s
"""

import random
import time

import pytest
from pytest_autoquant.allocation.knapsack import select_formats, select_formats_by_budget
from pytest_autoquant.allocation.scored_group import ScoredGroup

BUDGETS, SEED = 64, 1

#: Bits per weight, and the score of each format relative to the first.
FORMATS = {4.125: 1.0, 8.0: 0.05, 4.5: 0.8, 8.25: 0.04}

HIDDEN, WIDTHS = 2560, (2560, 4096, 6144, 9728, 19456)


def problem(num_groups, num_formats):
    random_of = random.Random(SEED)  # noqa: S311
    formats = dict(list(FORMATS.items())[:num_formats])
    groups = []
    for index in range(num_groups):
        base = 10 ** random_of.uniform(-6, -2)
        scores = (base * factor * random_of.uniform(0.8, 1.2) for factor in formats.values())
        groups.append(
            ScoredGroup(
                name=str(index),
                scores=tuple(scores),
                bits=tuple(formats),
                weights=HIDDEN * random_of.choice(WIDTHS),
            ).with_unquantized()
        )
    return groups


@pytest.mark.parametrize(("num_groups", "num_formats"), [(144, 2), (250, 4)])
def test_every_budget_at_once(benchmark, num_groups, num_formats):
    groups = problem(num_groups, num_formats)
    budgets = [min(FORMATS) + (16 - min(FORMATS)) * i / (BUDGETS - 1) for i in range(BUDGETS)]
    selections = benchmark.pedantic(select_formats_by_budget, (groups, budgets), rounds=5)
    started = time.perf_counter()
    alone = select_formats(groups, budgets[BUDGETS // 2])
    one = time.perf_counter() - started
    assert selections[BUDGETS // 2].score == alone.score
    best = benchmark.stats.stats.min
    print(
        f"\n{num_groups} groups, {num_formats + 1} formats: {BUDGETS} budgets {best:.3f} s, "
        f"one budget {one:.3f} s"
    )
