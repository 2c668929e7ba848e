"""Token slices are the whole tape, in module order, with at most so many tokens each."""

import pytest
import torch
from pytest_autoquant.scoring.replay.tape import Tape, TapeFingerprint
from pytest_autoquant.scoring.replay.token_slices import count_token_slices, token_slices

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
LINEARS = ("a.q", "a.k", "a.o")
SOURCE = {"a.q": "a.q", "a.k": "a.q", "a.o": "a.o"}
TOKENS, MULTI_CAPTION = 10, 7
CAPTIONS = (4, 3, 3)


@pytest.fixture
def tape():
    fields = dict.fromkeys(TapeFingerprint.__dataclass_fields__, "")
    numbers = torch.arange(TOKENS * 4.0)
    return Tape(
        fingerprint=TapeFingerprint(**{**fields, "format": 0, "batch_size": 1, "num_scored": 1}),
        source=SOURCE,
        inputs={"a.q": numbers.view(TOKENS, 4), "a.o": -numbers.view(TOKENS, 4)},
        amax={"a.q": torch.ones(4), "a.o": torch.zeros(4)},
        gradients={name: numbers[:TOKENS, None] + i for i, name in enumerate(LINEARS)},
        routing={},
        num_multi_caption_tokens=MULTI_CAPTION,
        batch_tokens=(7, 3),
        caption_lengths=CAPTIONS,
        non_finite_gradients=(),
        zero_inputs=(),
        zero_gradients=(),
    )


@pytest.mark.parametrize("tokens", [None, 3, 10])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_slices_of_an_input_are_the_tape(tape, tokens, device):
    pieces = list(token_slices(tape, LINEARS, torch.device(device), tokens))
    assert len(pieces) == count_token_slices(tape, tokens)
    assert [tuple(piece.gradients) for piece in pieces] == sorted(
        (tuple(piece.gradients) for piece in pieces), key=[("a.q", "a.k"), ("a.o",)].index
    )
    for source, readers in (("a.q", ("a.q", "a.k")), ("a.o", ("a.o",))):
        own = [piece for piece in pieces if tuple(piece.gradients) == readers]
        assert all(piece.x.device.type == device for piece in own)
        assert all(len(piece.x) <= (tokens or TOKENS) for piece in own)
        assert torch.equal(torch.cat([piece.x for piece in own]).cpu(), tape.inputs[source])
        assert all(torch.equal(piece.amax.cpu(), tape.amax[source]) for piece in own)
        assert sum(piece.num_multi_caption_tokens for piece in own) == MULTI_CAPTION
        lengths = torch.stack([piece.caption_lengths.cpu() for piece in own])
        assert lengths.sum(1).tolist() == [len(piece.x) for piece in own]
        assert tuple(lengths.sum(0).tolist()) == CAPTIONS
        for name in readers:
            gradient = torch.cat([piece.gradients[name] for piece in own])
            assert torch.equal(gradient.cpu(), tape.gradients[name])


def test_tokens_of_multi_caption_batches_stay_first(tape):
    parts = [piece.num_multi_caption_tokens for piece in token_slices(tape, ("a.o",), CPU, 4)]
    assert parts == [4, 3, 0]


def test_slices_tell_how_much_of_each_caption_they_hold(tape):
    parts = [piece.caption_lengths.tolist() for piece in token_slices(tape, ("a.o",), CPU, 3)]
    assert parts == [[3, 0, 0], [1, 2, 0], [0, 1, 2], [0, 0, 1]]
