"""Strips: the whole tape, in module order, no more tokens at a time than asked for."""

import pytest
import torch
from pytest_autoquant.scoring.replay.tape import Tape, TapeFingerprint
from pytest_autoquant.scoring.replay.token_slices import count_strips, strips

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
LINEARS = ("a.q", "a.k", "a.o")
SOURCE = {"a.q": "a.q", "a.k": "a.q", "a.o": "a.o"}
TOKENS, TOGETHER = 10, 7


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
        together=TOGETHER,
        broken=(),
    )


@pytest.mark.parametrize("tokens", [None, 1, 3, 7, 10, 99])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_the_strips_of_an_input_are_the_tape(tape, tokens, device):
    pieces = list(strips(tape, LINEARS, torch.device(device), tokens))
    assert len(pieces) == count_strips(tape, tokens)
    assert [tuple(piece.gradients) for piece in pieces] == sorted(
        (tuple(piece.gradients) for piece in pieces), key=[("a.q", "a.k"), ("a.o",)].index
    )
    for source, readers in (("a.q", ("a.q", "a.k")), ("a.o", ("a.o",))):
        own = [piece for piece in pieces if tuple(piece.gradients) == readers]
        assert all(piece.x.device.type == device for piece in own)
        assert all(len(piece.x) <= (tokens or TOKENS) for piece in own)
        assert torch.equal(torch.cat([piece.x for piece in own]).cpu(), tape.inputs[source])
        assert all(torch.equal(piece.amax.cpu(), tape.amax[source]) for piece in own)
        assert sum(piece.together for piece in own) == TOGETHER
        for name in readers:
            gradient = torch.cat([piece.gradients[name] for piece in own])
            assert torch.equal(gradient.cpu(), tape.gradients[name])


def test_tokens_of_shared_batches_stay_in_front(tape):
    parts = [piece.together for piece in strips(tape, ("a.o",), CPU, 4)]
    assert parts == [4, 3, 0]
