"""The embedded model models captions, and scores on it behave as they should."""

import json

import pytest
import torch
from scipy.stats import spearmanr

from harness.captions import calibration_data, load_captions
from harness.conf import load_vocabulary
from harness.config import effective_config
from harness.engine.modelopt import ModelOptEngine
from harness.model import load_model
from harness.registry import REGISTRY
from training.train_tiny import OUT, ROOT, encode, evaluate, read_lines, unigram_loss

VOCABULARY = load_vocabulary()


@pytest.fixture(scope="module")
def tiny():
    return load_model(REGISTRY["tiny-qwen3-vl"], device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def group_scores(tiny):
    def measure(pair, granularity, size="small"):
        captions = load_captions(None, size)
        data = calibration_data(
            captions, tiny.tokenize(captions.lines), batch_size=32, score_size=128
        )
        effective = effective_config(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
        engine = ModelOptEngine(tiny, method="gradient")
        (measured,) = engine.score([effective], data, lambda *_: None).values()
        return [group.score / data.scored_tokens for group in measured.groups]

    return measure


def test_it_fits_in_8_megabytes():
    assert sum(path.stat().st_size for path in OUT.iterdir()) < 8 * 2**20


def test_it_models_unseen_captions_far_better_than_word_frequencies_do(tiny):
    unseen = encode(tiny.tokenizer, read_lines(ROOT / "heldout.txt"))
    seen = encode(tiny.tokenizer, read_lines(ROOT / "captions.txt"))
    loss, unigram = evaluate(tiny.module, unseen), unigram_loss(seen, unseen)
    tiny.module.eval()
    assert loss < unigram - 2
    stated = json.loads((OUT / "training.json").read_text())["unseen"]["heldout"]
    assert loss == pytest.approx(stated["loss_after"], abs=1e-3)
    assert unigram == pytest.approx(stated["loss_unigram"], abs=1e-3)
    assert stated["loss_before"] > unigram


@pytest.mark.parametrize("activation", ["fp16", "int8"])
def test_int4_weights_score_above_int8_in_every_group(group_scores, activation):
    int4 = group_scores(f"wint4_a{activation}", "w_per_out_channel")
    int8 = group_scores(f"wint8_a{activation}", "w_per_out_channel")
    assert all(a > b for a, b in zip(int4, int8, strict=True))


def test_one_scale_per_tensor_scores_above_groups_of_64_for_int4(group_scores):
    per_tensor = group_scores("wint4_afp16", "w_per_tensor")
    groups = group_scores("wint4_afp16", "w_group64")
    assert sum(per_tensor) > 2 * sum(groups)
    assert all(a > b for a, b in zip(per_tensor, groups, strict=True))


@pytest.mark.parametrize(
    ("pair", "granularity"),
    [
        ("wint4_aint8", "default"),
        ("wint8_aint8", "recipe_match_channel_token"),
        ("wfp8_afp8", "default"),
    ],
)
def test_the_ranking_at_small_agrees_with_large(group_scores, record_property, pair, granularity):
    small = group_scores(pair, granularity, "small")
    large = group_scores(pair, granularity, "large")
    correlation = spearmanr(small, large).statistic
    record_property(f"spearman {pair} {granularity}", correlation)
    assert correlation > 0.9
