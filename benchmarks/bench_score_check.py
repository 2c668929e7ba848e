"""Where gradient scores misrank layer groups, and why: beside the measured KL divergence.

    pytest benchmarks/bench_score_check.py -s --aq-sizes=medium

``small`` by default; ``--aq-model``, ``--aq-pairs`` and the other options of the plugin apply.
Every config is scored and measured on all scored captions of the size.

AutoQuant's score sums, over tokens, the squares of (gradient x output change) of single output
channels. The second-order term of the loss has the square of their sum over all channels and all
linears of a group. For errors that are independent from channel to channel the two agree on
average. The second variant shown keeps that sum, token by token.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from pytest_autoquant.manifests.case_result import Group
from pytest_autoquant.modelopt_support.layer_groups import layer_groups
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.sweep import plan_sweep
from pytest_autoquant.scoring.replay.token_slices import token_slices
from scipy.stats import rankdata, spearmanr
from tabulate import tabulate
from torch.nn import functional

from tests.builders import ignore_progress


@dataclass(frozen=True)
class Checked:
    """A score of every group under every config beside the divergences, ``(configs, groups)``."""

    score: np.ndarray
    kl: np.ndarray

    @cached_property
    def spearman(self):
        pairs = zip(self.score, self.kl, strict=True)
        return np.array([spearmanr(*pair).statistic for pair in pairs])

    @cached_property
    def moved(self):
        """Ranks by score minus ranks by divergence: positive where the score underrates."""
        return rankdata(-self.score, axis=1) - rankdata(-self.kl, axis=1)

    @property
    def totals(self):
        """Score by divergence, of all groups together."""
        return self.score.sum(1) / self.kl.sum(1)

    @property
    def spread(self):
        """Standard deviation over the groups of log2(score / divergence), by config."""
        return np.log2(self.score / self.kl).std(1)


@pytest.fixture(scope="module")
def data(plan, runner):
    return runner.data(plan.sizes[0] if plan.settings.sizes else "small")


@pytest.fixture(scope="module")
def chosen(configs):
    return [config for _, config in configs.values()]


@pytest.fixture(scope="module")
def kl(runner, chosen, data):
    return totals(KLReplayEngine(runner.model), chosen, data)


@pytest.fixture(scope="module")
def score(runner, chosen, data, kl):
    return Checked(totals(ReplayEngine(runner.model), chosen, data), kl)


@pytest.fixture(scope="module")
def token_squares(runner, chosen, data, kl):
    return Checked(squares_of_token_sums(runner.model, chosen, data), kl)


def totals(engine, configs, data):
    outcomes = engine.score(configs, data, ignore_progress)
    scores = [[group.score for group in outcomes[c.digest].groups] for c in configs]
    return np.array(scores) / data.scored_tokens


@torch.no_grad()
def squares_of_token_sums(model, configs, data):
    """Sum (gradient x output change) over a group's channels, then its square over tokens."""
    tape = capture(model, data, model.device, ignore_progress)
    plan, groups = plan_sweep(configs), layer_groups(model)
    owner = {name: place for place, members in enumerate(groups) for name in members}
    shape = (len(configs), len(groups), sum(tape.caption_lengths))
    sums = torch.zeros(shape, dtype=torch.float64, device=model.device)
    for part in token_slices(tape, [each.name for each in model.linears], model.device, None):
        for name, gradient in part.gradients.items():
            linear = model.module.get_submodule(name)
            plain = functional.linear(part.x, linear.weight, linear.bias)
            for place, config in enumerate(configs):
                weight, x = plan.weights[config.weight], plan.inputs[config.input]
                w = linear.weight if weight is None else weight.weight(linear.weight)
                x = (
                    part.x
                    if x is None
                    else x.input(part.x, part.amax, part.num_multi_caption_tokens)
                )
                change = functional.linear(x, w, linear.bias) - plain
                sums[place, owner[name]] += (gradient.double() * change.double()).sum(-1)
    return sums.square().sum(-1).cpu().numpy() / data.scored_tokens


def shown(checked, rows):
    return (
        f"{np.median(checked.spearman[rows]):.3f}",
        f"{checked.spearman[rows].min():.3f}",
        f"{np.median(checked.totals[rows]):.2f}",
        f"{np.median(checked.spread[rows]):.2f}",
    )


COLUMNS = ("median Spearman", "least", "score / KL", "spread (log2)")


def test_pairs(configs, score, token_squares):
    by_pair = defaultdict(list)
    for place, (name, _) in enumerate(configs.values()):
        by_pair[name.partition("-")[0]].append(place)
    for title, checked in (
        ("the score: squares of channels", score),
        ("squares of the sum over a group's channels", token_squares),
    ):
        rows = [
            (
                pair,
                len(places),
                f"{np.median(score.kl[places].sum(1)):.3g}",
                *shown(checked, places),
            )
            for pair, places in by_pair.items()
        ]
        rows.append(("all", len(score.kl), "", *shown(checked, slice(None))))
        print(f"\n{title}\n{tabulate(rows, ('pair', 'configs', 'sum of KL', *COLUMNS))}")
    assert np.median(score.spearman) > 0.9


def test_kinds_of_layers(runner, score, token_squares):
    kinds = defaultdict(list)
    for place, members in enumerate(layer_groups(runner.model)):
        group = Group(
            name=members[0], score=0.0, rank=0, modules=members, weights=None, selected=None
        )
        kinds[group.projection].append(place)
    rows = []
    for kind, places in kinds.items():
        cells = []
        for checked in (score, token_squares):
            moved = checked.moved[:, places]
            cells += [f"{abs(moved).mean():.2f}", f"{moved.mean():+.2f}"]
        rows.append((kind, *cells))
    headers = ("kind of layer", "mean |moved|", "mean moved", "token: |moved|", "token: moved")
    print(f"\nranks by score minus ranks by KL\n{tabulate(rows, headers)}")
    assert set(score.moved.sum(1)) == {0.0}
