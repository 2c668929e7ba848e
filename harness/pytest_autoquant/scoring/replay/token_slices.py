"""Handing a tape to the sweep strip by strip; from host memory each is fetched ahead of its use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pytest_autoquant.scoring.replay.tape import Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Some tokens of one recorded input, with what its readers sent back.

    Attributes:
        x: ``(tokens, in_features)``.
        amax: ``(in_features,)``: largest |X| over all calibration tokens, also those not here.
        together: how many of the tokens, the first ones, passed in batches of several captions.
        gradients: by linear that reads ``x``, in module order, ``(tokens, out_features)``.
    """

    x: torch.Tensor
    amax: torch.Tensor
    together: int
    gradients: Mapping[str, torch.Tensor]


def strips(
    tape: Tape, linears: Sequence[str], device: torch.device, tokens: int | None
) -> Iterator[Strip]:
    """Yield the tape on ``device`` in module order, at most ``tokens`` at a time."""
    cuts = cut(tape, linears, tokens)
    if device.type == "cuda" and not all(x.is_cuda for x in tape.inputs.values()):
        cuts = _ahead(cuts, device)
    return cuts


def count_strips(tape: Tape, tokens: int | None) -> int:
    """Return how many strips ``strips`` yields."""
    return sum(-(-len(x) // (tokens or len(x))) for x in tape.inputs.values())


def cut(tape: Tape, linears: Sequence[str], tokens: int | None) -> Iterator[Strip]:
    """Yield views of the tape where it is."""
    readers: dict[str, list[str]] = {}
    for name in linears:
        readers.setdefault(tape.source[name], []).append(name)
    for source, names in readers.items():
        x = tape.inputs[source]
        step = tokens or len(x)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            yield Strip(
                x=x[part],
                amax=tape.amax[source],
                together=min(max(tape.together - start, 0), len(x[part])),
                gradients={name: tape.gradients[name][part] for name in names},
            )


def _ahead(cuts: Iterator[Strip], device: torch.device) -> Iterator[Strip]:
    """Copy each strip on a stream of its own while the one before is worked on."""
    copying = torch.cuda.Stream(device)
    waiting: tuple[Strip, torch.cuda.Event] | None = None
    for strip in cuts:
        with torch.cuda.stream(copying):
            fetched = _on(device, strip), copying.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = fetched
    if waiting is not None:
        yield _arrived(*waiting)


def _on(device: torch.device, strip: Strip) -> Strip:
    return replace(
        strip,
        x=strip.x.to(device, non_blocking=True),
        amax=strip.amax.to(device, non_blocking=True),
        gradients={
            name: gradient.to(device, non_blocking=True)
            for name, gradient in strip.gradients.items()
        },
    )


def _arrived(strip: Strip, copied: torch.cuda.Event) -> Strip:
    """Make the computing stream wait for the copy, and the allocator for the computation."""
    stream = torch.cuda.current_stream(strip.x.device)
    stream.wait_event(copied)
    for tensor in (strip.x, strip.amax, *strip.gradients.values()):
        tensor.record_stream(stream)
    return strip
