"""Records the tape of one decoder layer at a time, for a model that no device holds as a whole.

First all batches run forward through a layer, then through the next, and the hidden states before
each layer are kept. Then the layers run again, the last first: each on its recorded states, from
the gradients of what it returns to those of what it takes. So every layer's weights are brought
twice, however many batches there are, and of the tape there is one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from pytest_autoquant.calibration.batches import Batch, CalibrationData
from pytest_autoquant.models.device import synchronize
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.next_token import next_token_logits
from pytest_autoquant.models.offload.resident import resident
from pytest_autoquant.models.restore import forward_replaced
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.recorder import (
    BatchPass,
    TapeRecording,
    check_all_ran,
    hooked,
    num_tokens,
    tape_of,
)
from pytest_autoquant.scoring.replay.tape import Tape, estimate_bytes


def layer_tapes(
    model: LoadedModel,
    data: CalibrationData,
    device: torch.device,
    progress: Progress,
    draws: int = 0,
) -> Iterator[Tape]:
    """Yield the tape of each decoder layer, the last first, while the layer's weights are at hand.

    Together they are the tape that ``recorder.capture`` makes of a model in one place, bit for bit.

    Args:
        device: where tapes and hidden states are kept.
        draws: see ``recorder.capture``.

    Raises:
        NotReplayableError: see ``recorder.capture``; or the model cannot be run layer by layer.
    """
    walk = _Walk(model, data, device, draws)
    walk.forward(progress)
    yield from walk.backward(progress)


def layer_bytes(model: LoadedModel, data: CalibrationData, draws: int = 0) -> int:
    """Return about how many bytes ``layer_tapes`` keeps: hidden states, the tape of a layer."""
    layers = len(DecoderLayers(model))
    itemsize: int = next(model.module.parameters()).element_size()
    states = layers * num_tokens(data.scored) * model.linears[0].in_features * itemsize
    return states + estimate_bytes(model, data, draws) // layers


class _Walk:
    """All batches on their way through the decoder; see ``layer_tapes``."""

    def __init__(
        self, model: LoadedModel, data: CalibrationData, device: torch.device, draws: int
    ) -> None:
        self._model, self._data, self._device = model, data, device
        self._layers = DecoderLayers(model)
        self._scored, self._unscored = list(data.replayed), list(data.unscored)
        self._recordings = [
            TapeRecording(num_tokens=num_tokens(data.scored), device=device, draws=draws)
            for _ in range(len(self._layers))
        ]
        self._states: list[list[torch.Tensor]] = []

    def forward(self, progress: Progress) -> None:
        """Keep the hidden states of the scored batches before each layer, ranges of the others."""
        last = len(self._layers) - 1
        with torch.no_grad():
            scored, unscored = self._first(self._scored), self._first(self._unscored)
            for index in range(last + 1):
                progress("capture", index, last + 1)
                self._states.append([state.to(self._device) for state in scored])
                with self._layers.resident(index):
                    if index < last:
                        scored = [
                            self._after(index, batch, state)
                            for batch, state in zip(self._scored, scored, strict=True)
                        ]
                    unscored = [
                        self._range(index, batch, state)
                        for batch, state in zip(self._unscored, unscored, strict=True)
                    ]

    def backward(self, progress: Progress) -> Iterator[Tape]:
        """Yield the tapes; the hidden states of a layer are dropped with it."""
        count = len(self._layers)
        gradients: list[list[torch.Tensor]] = [[] for _ in self._scored]
        for index in reversed(range(count)):
            progress("capture layers", count - 1 - index, count)
            recording = self._recordings.pop()
            states, start = self._states.pop(), 0
            with self._layers.resident(index):
                for place, (batch, state) in enumerate(zip(self._scored, states, strict=True)):
                    rows = slice(start, start + batch.num_tokens)
                    start = rows.stop
                    batch_pass = BatchPass(recording, batch.num_tokens, rows)
                    before = state.to(self._model.device).requires_grad_()
                    gradients[place] = self._differentiated(
                        index, batch, before, batch_pass, gradients[place]
                    )
                check_all_ran(self._linears(index), recording)
                synchronize(self._model.device)
                yield tape_of(self._model, self._data, recording)

    def _first(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Return the hidden states before the first layer."""
        found: list[torch.Tensor] = []
        with resident(self._model.module.get_input_embeddings()):
            for batch in batches:
                with self._layers.before_first(lambda _, hidden: found.append(hidden)):
                    self._model.module(input_ids=self._model.tensor(batch), use_cache=False)
        return found

    def _range(self, index: int, batch: Batch, state: torch.Tensor) -> torch.Tensor:
        """Record the ranges of a batch in a layer; return the hidden state after it."""
        batch_pass = BatchPass(self._recordings[index], batch.num_tokens, None)
        with hooked(self._model, batch_pass, self._linears(index)):
            return self._after(index, batch, state)

    def _after(self, index: int, batch: Batch, state: torch.Tensor) -> torch.Tensor:
        """Run one layer; return the hidden state before the next, or what the last returns."""
        found: list[torch.Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(self._started(index, state, alone=True))
            if index + 1 < len(self._layers):
                keep = self._layers.seen_before(index + 1, lambda _, hidden: found.append(hidden))
                stack.enter_context(keep)
            output = self._model.module(input_ids=self._model.tensor(batch), use_cache=False)
        return found[0] if found else output.logits

    def _differentiated(
        self,
        index: int,
        batch: Batch,
        before: torch.Tensor,
        batch_pass: BatchPass,
        after: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Return the gradients of the hidden state before a layer, one for each draw.

        Args:
            after: those of the hidden state after it; the last one has the model's output.
        """
        with hooked(self._model, batch_pass, self._linears(index)), torch.enable_grad():
            if index == len(self._layers) - 1:
                outputs = self._outputs(index, batch, before, batch_pass.recording)
                return [
                    _gradient(output, before, gradient, is_last)
                    for output, gradient, is_last in outputs
                ]
            hidden, found = self._after(index, batch, before), []
            for draw, gradient in enumerate(after):
                batch_pass.recording.gradients.draw = draw if batch_pass.recording.draws else None
                found.append(_gradient(hidden, before, gradient, draw + 1 == len(after)))
        return found

    def _outputs(
        self, index: int, batch: Batch, before: torch.Tensor, recording: TapeRecording
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, bool]]:
        head = self._model.module.get_output_embeddings()
        with ExitStack() as stack:
            if head is not None:
                stack.enter_context(resident(head))
            with self._started(index, before, alone=False):
                logits = next_token_logits(self._model.module, self._model.tensor(batch))
            yield from recording.differentiated(self._model, batch, logits)

    def _started(self, index: int, state: torch.Tensor, *, alone: bool) -> ExitStack:
        """Start the model at a layer, without its embedding, which may be offloaded."""
        stack = ExitStack()
        embedding = self._model.module.get_input_embeddings()
        stack.enter_context(forward_replaced(embedding, partial(_answer, state)))
        stack.enter_context(self._layers.started_at(index, state, alone=alone))
        return stack

    def _linears(self, index: int) -> list[Linear]:
        names = set(self._layers.linears_of(index))
        return [linear for linear in self._model.linears if linear.name in names]


def _gradient(
    output: torch.Tensor, before: torch.Tensor, after: torch.Tensor | None, is_last: bool
) -> torch.Tensor:
    (found,) = torch.autograd.grad(output, [before], grad_outputs=after, retain_graph=not is_last)
    return found


def _answer(state: torch.Tensor, ids: Any) -> torch.Tensor:
    return state
