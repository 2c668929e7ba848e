"""The calibration tokens that each expert saw, in the manifest and in notes."""

import torch
from builders import calibration_of, ignore_progress
from pytest_autoquant.scoring.manifest.expert_tokens import (
    count_expert_tokens,
    expert_notes,
    expert_tokens,
)
from pytest_autoquant.scoring.replay.recorder import capture


def test_counts_are_those_of_the_tape_and_add_up(mixture, tiny):
    data = calibration_of(mixture, score_size=2)
    counts = count_expert_tokens(mixture, data.batches)
    tape = capture(mixture, data, torch.device("cpu"), ignore_progress)
    assert counts == {name: each.counts.tolist() for name, each in tape.routing.items()}
    for name, record in expert_tokens(counts, mixture).items():
        assert record.per_token == 2
        assert list(record.counts) == counts[name]
        assert sum(record.counts) == 2 * sum(batch.num_tokens for batch in data.batches)
    assert count_expert_tokens(tiny, data.batches) == {}


def test_notes_name_the_first_experts_without_tokens_and_with_few():
    counts = {"a.experts": [16, 15, 0, 20], "b.experts": [0, 0, 0, 1]}
    idle, few = expert_notes(counts)
    assert idle.startswith(
        "no calibration token reaches 4 of 8 experts: a.experts 2 (0), b.experts 0 (0), "
        "b.experts 1 (0) and 1 more; their weights are quantized by their own ranges"
    )
    assert few.startswith(
        "2 of 8 experts saw fewer than 16 calibration tokens: a.experts 1 (15), b.experts 3 (1); "
        "the experts of a layer share their input ranges"
    )
    assert expert_notes({"a.experts": [16, 99]}) == expert_notes({}) == ()
