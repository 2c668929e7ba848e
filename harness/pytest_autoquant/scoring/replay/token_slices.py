"""Hands a tape to the sweep in slices of tokens; from host memory each slice is copied ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pytest_autoquant.scoring.replay.tape import Tape, hidden_range


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRouting:
    """What fused experts take beside their input.

    Attributes:
        experts: of each token, ``(tokens, experts per token)``.
        weights: of their outputs, ``(tokens, experts per token)``.
        hidden_amax: ``(intermediate,)``: largest magnitude that their second matrices read, over
            all calibration tokens.
        parts: the tokens that run at a time. On a CPU they are those of one batch: products of the
            shapes that the model multiplies give its bits, and a value rounded otherwise can be
            quantized otherwise.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    hidden_amax: torch.Tensor
    parts: tuple[slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSlice:
    """Some tokens of one recorded input, with the output gradients of the linears that read it.

    Attributes:
        x: ``(tokens, in_features)``.
        amax: ``(in_features,)``: largest |X| over all calibration tokens, not only those of ``x``.
        num_multi_caption_tokens: number of tokens, the first ones, from batches of several
            captions; see ``Tape``.
        caption_lengths: ``(captions,)``: number of tokens of each caption of the tape that are in
            the slice, in the order of the tokens.
        gradients: by linear, in module order; see ``Tape``.
        routing: of fused experts, which alone read the input then; None for linears.
    """

    x: torch.Tensor
    amax: torch.Tensor
    num_multi_caption_tokens: int
    caption_lengths: torch.Tensor
    gradients: Mapping[str, torch.Tensor]
    routing: SliceRouting | None = None

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors of the slice."""
        yield from (self.x, self.amax, self.caption_lengths, *self.gradients.values())
        if self.routing is not None:
            yield from (self.routing.experts, self.routing.weights, self.routing.hidden_amax)


def token_slices(
    tape: Tape, linears: Sequence[str], device: torch.device, max_tokens: int | None
) -> Iterator[TokenSlice]:
    """Yield the tape on ``device`` in module order.

    Args:
        linears: names of the linears, in module order.
        max_tokens: most tokens in a slice; None for all tokens of an input in one slice.
    """
    views = _views(tape, linears, max_tokens, by_batch=device.type == "cpu")
    if device.type == "cuda" and not all(x.is_cuda for x in tape.inputs.values()):
        return _prefetched(views, device)
    return views


def count_token_slices(tape: Tape, max_tokens: int | None) -> int:
    """Return how many slices ``token_slices`` yields."""
    return sum(-(-len(x) // (max_tokens or len(x))) for x in tape.inputs.values())


def _views(
    tape: Tape, linears: Sequence[str], max_tokens: int | None, *, by_batch: bool
) -> Iterator[TokenSlice]:
    """Yield views of the tape on the tape's own device; see ``SliceRouting.parts``."""
    readers: dict[str, list[str]] = {}
    for name in linears:
        readers.setdefault(tape.source[name], []).append(name)
    for source, names in readers.items():
        num_tokens = len(tape.inputs[source])
        for start in range(0, num_tokens, max_tokens or num_tokens):
            stop = start + (max_tokens or num_tokens)
            rows = slice(start, min(stop, num_tokens))
            view = _view(tape, source, names, rows)
            yield replace(view, routing=_routing(tape, source, rows, by_batch=by_batch))


def _view(tape: Tape, source: str, readers: Sequence[str], rows: slice) -> TokenSlice:
    multi_caption = min(max(tape.num_multi_caption_tokens - rows.start, 0), rows.stop - rows.start)
    return TokenSlice(
        x=tape.inputs[source][rows],
        amax=tape.amax[source],
        num_multi_caption_tokens=multi_caption,
        caption_lengths=_lengths_within(tape, rows).to(tape.inputs[source].device),
        gradients={name: tape.gradients[name][rows] for name in readers},
    )


def _routing(tape: Tape, name: str, rows: slice, *, by_batch: bool) -> SliceRouting | None:
    routing = tape.routing.get(name)
    if routing is None:
        return None
    return SliceRouting(
        experts=routing.experts[rows],
        weights=routing.weights[rows],
        hidden_amax=tape.amax[hidden_range(name)],
        parts=tuple(_batches_within(tape, rows)) if by_batch else (slice(None),),
    )


def _batches_within(tape: Tape, rows: slice) -> Iterator[slice]:
    """Yield where each batch lies in some rows of the tape, counted from the first of them."""
    stop = 0
    for tokens in tape.batch_tokens:
        start, stop = stop, stop + tokens
        first, last = max(start, rows.start), min(stop, rows.stop)
        if first < last:
            yield slice(first - rows.start, last - rows.start)


def _lengths_within(tape: Tape, rows: slice) -> torch.Tensor:
    """Return how many tokens of each caption lie in some rows of the tape."""
    lengths = torch.tensor(tape.caption_lengths)
    stops = lengths.cumsum(0)
    return stops.clamp(rows.start, rows.stop) - (stops - lengths).clamp(rows.start, rows.stop)


def _prefetched(slices: Iterator[TokenSlice], device: torch.device) -> Iterator[TokenSlice]:
    """Copy each slice on a stream of its own while the previous one is computed."""
    copy_stream = torch.cuda.Stream(device)
    pending: tuple[TokenSlice, torch.cuda.Event] | None = None
    for token_slice in slices:
        with torch.cuda.stream(copy_stream):
            started = _copied(token_slice, device), copy_stream.record_event()
        if pending is not None:
            yield _after_copy(*pending)
        pending = started
    if pending is not None:
        yield _after_copy(*pending)


def _copied(token_slice: TokenSlice, device: torch.device) -> TokenSlice:
    return replace(
        token_slice,
        x=token_slice.x.to(device, non_blocking=True),
        amax=token_slice.amax.to(device, non_blocking=True),
        caption_lengths=token_slice.caption_lengths.to(device, non_blocking=True),
        gradients={
            name: gradient.to(device, non_blocking=True)
            for name, gradient in token_slice.gradients.items()
        },
        routing=_copied_routing(token_slice.routing, device),
    )


def _copied_routing(routing: SliceRouting | None, device: torch.device) -> SliceRouting | None:
    if routing is None:
        return None
    return replace(
        routing,
        experts=routing.experts.to(device, non_blocking=True),
        weights=routing.weights.to(device, non_blocking=True),
        hidden_amax=routing.hidden_amax.to(device, non_blocking=True),
    )


def _after_copy(token_slice: TokenSlice, copied: torch.cuda.Event) -> TokenSlice:
    """Make the compute stream wait for the copy, and keep the memory until it has computed."""
    stream = torch.cuda.current_stream(token_slice.x.device)
    stream.wait_event(copied)
    for tensor in token_slice.tensors:
        tensor.record_stream(stream)
    return token_slice
