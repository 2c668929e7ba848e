"""The best selection at 64 budgets at once, and at one budget: 250 groups, 5 formats.

pytest benchmarks/test_frontier.py -s
"""

import random
import time

from pytest_autoquant.allocation.knapsack import select_formats, select_formats_by_budget
from pytest_autoquant.allocation.scored_group import ScoredGroup

GROUPS, BUDGETS, SEED = 250, 64, 1
FORMATS = {4.125: 1.0, 4.5: 0.8, 8.0: 0.05, 8.25: 0.04}
"""Bits per weight, and the score of each format relative to the first."""

HIDDEN, WIDTHS = 2560, (2560, 4096, 6144, 9728, 19456)


def problem():
    random_of = random.Random(SEED)  # noqa: S311
    groups = []
    for index in range(GROUPS):
        base = 10 ** random_of.uniform(-6, -2)
        scores = (base * factor * random_of.uniform(0.8, 1.2) for factor in FORMATS.values())
        groups.append(
            ScoredGroup(
                name=str(index),
                scores=tuple(scores),
                bits=tuple(FORMATS),
                weights=HIDDEN * random_of.choice(WIDTHS),
            ).with_unquantized()
        )
    return groups


def test_every_budget_at_once(benchmark):
    groups = problem()
    budgets = [min(FORMATS) + (16 - min(FORMATS)) * i / (BUDGETS - 1) for i in range(BUDGETS)]
    found = benchmark.pedantic(select_formats_by_budget, (groups, budgets), rounds=5)
    started = time.perf_counter()
    alone = select_formats(groups, budgets[BUDGETS // 2])
    one = time.perf_counter() - started
    assert abs(found[BUDGETS // 2].score - alone.score) <= 1e-9 * alone.score
    best = benchmark.stats.stats.min
    print(
        f"\n{BUDGETS} budgets {best:.2f} s, {1e3 * best / BUDGETS:.0f} ms each; "
        f"one solve {one:.2f} s"
    )
