"""Records the tape: the captions run through the model once while hooks watch every linear.

The model is hooked only while a batch runs through it, and never changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pytest_autoquant.calibration.batches import Batch, CalibrationData
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.models.device import synchronize
from pytest_autoquant.models.drawn_gradients import drawn_gradients
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.experts.products import watched_experts
from pytest_autoquant.scoring.replay.tape import (
    Routing,
    Tape,
    hidden_range,
    kept_draws,
    largest_magnitudes,
    tape_fingerprint,
)
from pytest_autoquant.text import counted


def capture(
    model: LoadedModel,
    data: CalibrationData,
    device: torch.device,
    progress: Progress,
    draws: int = 0,
) -> Tape:
    """Run every batch forward, the scored ones also backward, and record a tape.

    Batches of several captions come first, so that their tokens are the first ones of the tape.

    Args:
        device: where the tape is kept; host memory is pinned when the model is on CUDA.
        draws: how often gradients of the logits are drawn from the Fisher information of the
            predictions, with a backward pass each (see ``tape.kept_draws``); 0 for those of the
            loss.

    Raises:
        NotReplayableError: a linear of the language model never runs, runs several times per
            forward pass, sees only some of the tokens, or shares its input on some batches only.
    """
    recording = TapeRecording(num_tokens=num_tokens(data.scored), device=device, draws=draws)
    offset, total = 0, len(data.batches)
    for done, batch in enumerate(data.replayed):
        progress("capture", done, total)
        rows = slice(offset, offset + batch.num_tokens)
        _run_scored(model, batch, BatchPass(recording, batch.num_tokens, rows))
        offset = rows.stop
    for done, batch in enumerate(data.unscored, start=len(data.scored)):
        progress("capture", done, total)
        _run_unscored(model, batch, BatchPass(recording, batch.num_tokens, None))
    check_all_ran(model.linears, recording)
    synchronize(model.device)
    return tape_of(model, data, recording)


def tape_of(model: LoadedModel, data: CalibrationData, recording: TapeRecording) -> Tape:
    """Return what was recorded of some linears, or all, as a tape."""
    largest = largest_magnitudes(recording.gradients.tensors)
    ranges = largest_magnitudes(recording.amax)
    return Tape(
        fingerprint=tape_fingerprint(model, data, recording.draws),
        source=recording.source,
        inputs=recording.inputs.tensors,
        amax=recording.amax,
        gradients=recording.gradients.tensors,
        routing=recording.routing(),
        batch_tokens=tuple(batch.num_tokens for batch in data.replayed),
        num_multi_caption_tokens=num_tokens(b for b in data.scored if len(b.rows) > 1),
        caption_lengths=tuple(len(row) for row in data.replayed_captions),
        non_finite_gradients=tuple(n for n, most in largest.items() if not math.isfinite(most)),
        zero_inputs=tuple(name for name, read in recording.source.items() if ranges[read] == 0),
        zero_gradients=tuple(name for name, most in largest.items() if most == 0),
    )


class _TokenBuffers:
    """Preallocated ``(tokens, width)`` tensors by linear, filled batch by batch.

    Attributes:
        draw: which of several draws is written; the tensors are ``(tokens, draws, width)`` then,
            of the draws that a linear keeps.
    """

    def __init__(self, num_tokens: int, device: torch.device, draws: int = 0) -> None:
        self._num_tokens, self._draws = num_tokens, draws
        self._device = device
        self.draw: int | None = None
        self.tensors: dict[str, torch.Tensor] = {}

    def write(self, name: str, rows: slice, values: torch.Tensor) -> None:
        """Copy values of shape ``(captions, tokens, width)`` to some rows of a linear's buffer."""
        kept = kept_draws(name, self._draws)
        if self.draw is not None and self.draw >= kept:
            return
        if name not in self.tensors:
            lead = (self._num_tokens, kept) if kept else (self._num_tokens,)
            self.tensors[name] = torch.empty(
                (*lead, values.shape[-1]),
                dtype=values.dtype,
                device=self._device,
                pin_memory=self._device.type == "cpu" and values.is_cuda,
            )
        flat = values.detach().reshape(-1, values.shape[-1])
        written = self.tensors[name][rows]
        written = written if self.draw is None else written[:, self.draw]
        written.copy_(flat, non_blocking=True)


class TapeRecording:
    """What the hooks recorded over all batches so far; see ``Tape`` for the fields.

    Args:
        num_tokens: of the scored batches.
    """

    def __init__(self, *, num_tokens: int, device: torch.device, draws: int) -> None:
        self.draws = draws
        self.inputs = _TokenBuffers(num_tokens, device)
        self.gradients = _TokenBuffers(num_tokens, device, draws)
        self.experts = _TokenBuffers(num_tokens, device)
        self.weights = _TokenBuffers(num_tokens, device)
        self.counts: dict[str, torch.Tensor] = {}
        self.amax: dict[str, torch.Tensor] = {}
        self.source: dict[str, str] = {}

    def add_range(self, name: str, x: torch.Tensor) -> None:
        """Raise the largest |X| per channel by an input, ``(..., in_features)``."""
        largest = x.detach().abs().amax(dim=tuple(range(x.dim() - 1)))
        known = self.amax.get(name)
        self.amax[name] = largest if known is None else torch.maximum(known, largest)

    def count(self, name: str, experts: torch.Tensor, num_experts: int) -> None:
        """Count the tokens that each expert sees, from ``(tokens, experts per token)``."""
        seen = experts.flatten().bincount(minlength=num_experts)
        self.counts[name] = self.counts[name] + seen if name in self.counts else seen

    def routing(self) -> dict[str, Routing]:
        """Return the routing of each layer's experts."""
        return {
            name: Routing(
                experts=experts, weights=self.weights.tensors[name], counts=self.counts[name]
            )
            for name, experts in self.experts.tensors.items()
        }

    def differentiated(
        self, model: LoadedModel, batch: Batch, logits: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, bool]]:
        """Yield what a batch is differentiated from, and whether it is the last of the draws.

        That is the loss, or the logits with a drawn gradient. Gradients that are written meanwhile
        are those of the draw.
        """
        if not self.draws:
            yield next_token_loss(logits, model.tensor(batch)), None, True
            return
        for draw, gradient in enumerate(drawn_gradients(logits, batch, self.draws)):
            self.gradients.draw = draw
            yield logits, gradient, draw + 1 == self.draws

    def set_source(self, name: str, source: str) -> None:
        """Note whose input a linear reads; the answer has to be the same for every batch."""
        known = self.source.setdefault(name, source)
        if known != source:
            other = known if source == name else source
            raise _not_replayable(f"{name} shares its input with {other} on some captions only")


@dataclass(frozen=True, slots=True, kw_only=True)
class _SeenInput:
    """The input that a linear read last, and that linear.

    The tensor is kept alive, so that no other tensor can take its identity; its version tells
    whether it was changed in place since.
    """

    x: torch.Tensor
    version: int
    linear: str

    def is_same(self, x: torch.Tensor) -> bool:
        """Whether another linear reads the same values from the same tensor."""
        return self.x is x and self.version == x._version


@dataclass(slots=True)
class BatchPass:
    """The forward and backward pass of one batch.

    Attributes:
        rows: where the batch's tokens lie in the tape; None for a batch that is not scored.
        embedded: the embedding's output, from which a scored batch is differentiated.
    """

    recording: TapeRecording
    num_tokens: int
    rows: slice | None
    embedded: torch.Tensor | None = None
    seen: _SeenInput | None = None
    called: set[str] = field(default_factory=set)

    def on_embedding(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Make the embedding's output the start of the graph: weights need no gradients."""
        if self.rows is None:
            return None
        self.embedded = output.detach().requires_grad_()
        return self.embedded

    def on_linear(self, name: str, module: Any, args: Any, output: torch.Tensor) -> None:
        """Record one linear's input, and its output's gradient once that is computed."""
        x = args[0]
        source = self._source_of(name, x)
        self.recording.set_source(name, source)
        self._check_call(name, x)
        if self.rows is None:
            return
        if source == name:
            self.recording.inputs.write(name, self.rows, x)
        # The hook must not refer to this pass: it would keep the graph alive through ``seen``.
        output.register_hook(partial(self.recording.gradients.write, name, self.rows))

    def on_experts(self, name: str, module: Any, args: Any, output: torch.Tensor) -> None:
        """Record what the router gave one layer's experts, and what a linear's record has."""
        if len(args) != 3:
            raise _not_replayable(f"{name} is not called with tokens, experts and their weights")
        _, experts, weights = args
        self.recording.count(name, experts, module.num_experts)
        if self.rows is not None:
            self.recording.experts.write(name, self.rows, experts)
            self.recording.weights.write(name, self.rows, weights)
        self.on_linear(name, module, args, output)

    def on_hidden(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Note the range of what an expert's second matrix reads."""
        self.recording.add_range(hidden_range(name), hidden)
        return hidden

    def _source_of(self, name: str, x: torch.Tensor) -> str:
        """Return the linear whose input this is: the tensor read just before is shared."""
        if self.seen is None or not self.seen.is_same(x):
            self.seen = _SeenInput(x=x, version=x._version, linear=name)
            self.recording.add_range(name, x)
        return self.seen.linear

    def _check_call(self, name: str, x: torch.Tensor) -> None:
        """Refuse a call that does not fit one recorded row per token."""
        num_tokens = x.shape[:-1].numel()
        if name in self.called:
            raise _not_replayable(f"{name} runs several times per forward")
        if num_tokens != self.num_tokens:
            raise _not_replayable(f"{name} sees {num_tokens} of {self.num_tokens} tokens")
        self.called.add(name)


@contextmanager
def hooked(model: LoadedModel, batch_pass: BatchPass, linears: Sequence[Linear]) -> Iterator[None]:
    """Hook the embedding and some linears, and remove the hooks also when the block raises."""
    with ExitStack() as stack:
        embedding = model.module.get_input_embeddings()
        stack.callback(embedding.register_forward_hook(batch_pass.on_embedding).remove)
        for linear in linears:
            on_call = batch_pass.on_experts if linear.is_fused else batch_pass.on_linear
            module = model.module.get_submodule(linear.name)
            hook = partial(on_call, linear.name)
            stack.callback(module.register_forward_hook(hook).remove)
            if linear.is_fused:
                watched = watched_experts(module, partial(batch_pass.on_hidden, linear.name))
                stack.enter_context(watched)
        yield


def _run_scored(model: LoadedModel, batch: Batch, batch_pass: BatchPass) -> None:
    """Run a batch forward and backward, from the loss or the logits to the embedding's output."""
    recording = batch_pass.recording
    with hooked(model, batch_pass, model.linears), torch.enable_grad():
        logits = next_token_logits(model.module, model.tensor(batch))
        for output, gradient, is_last in recording.differentiated(model, batch, logits):
            torch.autograd.grad(output, [batch_pass.embedded], gradient, retain_graph=not is_last)


def _run_unscored(model: LoadedModel, batch: Batch, batch_pass: BatchPass) -> None:
    """Run a batch forward, for its input ranges only."""
    with hooked(model, batch_pass, model.linears), torch.no_grad():
        model.module(input_ids=model.tensor(batch), use_cache=False)


def check_all_ran(linears: Sequence[Linear], recording: TapeRecording) -> None:
    """Refuse a tape that lacks a linear.

    Raises:
        NotReplayableError: one did not run.
    """
    idle = [x.name for x in linears if x.name not in recording.gradients.tensors]
    if idle:
        raise _not_replayable(
            f"{counted(len(idle), 'linear')} did not run on the captions, such as {idle[0]}"
        )


def _not_replayable(reason: str) -> NotReplayableError:
    return NotReplayableError(
        f"{reason}; the replay engine cannot score this model: use --aq-engine modelopt"
    )


def num_tokens(batches: Iterable[Batch]) -> int:
    """Return the number of tokens of some batches."""
    return sum(batch.num_tokens for batch in batches)
