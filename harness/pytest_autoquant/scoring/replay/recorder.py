"""Recording the tape: captions run through the model once, hooks watch every linear.

The model is only hooked while captions run through it, never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pytest_autoquant.calibration.batches import Batch, CalibrationData
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.tape import Tape, TapeFingerprint, tape_fingerprint


def capture(
    model: LoadedModel, data: CalibrationData, device: torch.device, progress: Progress
) -> Tape:
    """Run every caption forward, the scored ones also backward, and record.

    Args:
        device: where the tape is kept; host memory is pinned when the model is on CUDA.

    Raises:
        NotReplayableError: a linear of the language model never ran, runs several times per
            forward, or sees only some of the tokens.
    """
    recorder = _Recorder(model, data, device)
    with recorder.attached():
        for done, batch in enumerate(sorted(data.scored, key=_is_alone)):
            progress("capture", done, len(data.batches))
            recorder.scored(batch)
        for done, batch in enumerate(data.unscored, start=len(data.scored)):
            progress("capture", done, len(data.batches))
            recorder.unscored(batch)
    return recorder.finish(tape_fingerprint(model, data))


def _is_alone(batch: Batch) -> bool:
    """Whether a batch is one caption: on CUDA some of ModelOpt's quantizers round it otherwise."""
    return len(batch.rows) == 1


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Name the tensors that hold an infinity or NaN; each is read once."""
    largest = [torch.linalg.vector_norm(t, ord=torch.inf) for t in tensors.values()]
    finite = torch.stack(largest).isfinite().tolist()
    return tuple(name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite)


class _Recorder:
    """Hooks one model's linears and fills preallocated buffers."""

    def __init__(self, model: LoadedModel, data: CalibrationData, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._tokens = sum(batch.num_tokens for batch in data.scored)
        self._together = sum(batch.num_tokens for batch in data.scored if not _is_alone(batch))
        self._offset = 0
        self._is_scored = False
        self._embedded: torch.Tensor | None = None
        self._last: tuple[torch.Tensor, int, str] | None = None
        self._called: set[str] = set()
        self._batch_tokens = 0
        self._source: dict[str, str] = {}
        self._inputs: dict[str, torch.Tensor] = {}
        self._amax: dict[str, torch.Tensor] = {}
        self._gradients: dict[str, torch.Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the embedding and the linears, and unhook them whatever happens."""
        module = self._model.module
        with ExitStack() as stack:
            embedding = module.get_input_embeddings()
            stack.callback(embedding.register_forward_hook(self._on_embedding).remove)
            for linear in self._model.linears:
                hook = self._on_linear(linear.name)
                handle = module.get_submodule(linear.name).register_forward_hook(hook)
                stack.callback(handle.remove)
            yield

    def scored(self, batch: Batch) -> None:
        """Run a batch forward and backward, from the loss to the embedding's output."""
        self._is_scored, self._batch_tokens = True, batch.num_tokens
        ids = self._model.tensor(batch)
        with torch.enable_grad():
            loss = next_token_loss(next_token_logits(self._model.module, ids), ids)
            torch.autograd.grad(loss, [self._embedded])
        self._offset += batch.num_tokens
        self._forget()

    def unscored(self, batch: Batch) -> None:
        """Run a batch forward for its input ranges only."""
        self._is_scored, self._batch_tokens = False, batch.num_tokens
        with torch.no_grad():
            self._model.module(input_ids=self._model.tensor(batch), use_cache=False)
        self._forget()

    def finish(self, fingerprint: TapeFingerprint) -> Tape:
        """Return what was recorded."""
        silent = [x.name for x in self._model.linears if x.name not in self._gradients]
        if silent:
            raise NotReplayableError(
                f"{len(silent)} linears never ran on the captions, such as {silent[0]}; the replay "
                "engine cannot score them: use --aq-engine modelopt"
            )
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return Tape(
            fingerprint=fingerprint,
            source=self._source,
            inputs=self._inputs,
            amax=self._amax,
            gradients=self._gradients,
            together=self._together,
            broken=_not_finite(self._gradients),
        )

    def _forget(self) -> None:
        self._embedded = self._last = None
        self._called.clear()

    def _on_embedding(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not self._is_scored:
            return None
        self._embedded = output.detach().requires_grad_()
        return self._embedded

    def _on_linear(self, name: str) -> Any:
        def hook(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            source = self._read_input(name, args[0])
            self._check_call(name, args[0])
            if not self._is_scored:
                return
            rows = slice(self._offset, self._offset + self._batch_tokens)
            if source == name:
                self._write(self._inputs, name, rows, args[0])
            output.register_hook(lambda g: self._write(self._gradients, name, rows, g))

        return hook

    def _check_call(self, name: str, x: torch.Tensor) -> None:
        """Refuse what one record per linear and token cannot hold."""
        if name in self._called:
            raise NotReplayableError(
                f"{name} runs several times per forward; the replay engine cannot score it: use "
                "--aq-engine modelopt"
            )
        if x.shape[:-1].numel() != self._batch_tokens:
            raise NotReplayableError(
                f"{name} sees {x.shape[:-1].numel()} of {self._batch_tokens} tokens; the replay "
                "engine cannot score it: use --aq-engine modelopt"
            )
        self._called.add(name)

    def _read_input(self, name: str, x: torch.Tensor) -> str:
        """Return the linear whose input this is; a tensor seen just before is shared."""
        if self._last is not None and self._last[0] is x and self._last[1] == x._version:
            source = self._last[2]
        else:
            source = name
            self._last = (x, x._version, name)
            largest = x.detach().abs().amax(dim=tuple(range(x.dim() - 1)))
            known = self._amax.get(name)
            self._amax[name] = largest if known is None else torch.maximum(known, largest)
        if self._source.setdefault(name, source) != source:
            raise NotReplayableError(
                f"{name} shares its input with {source} on some captions only; the replay engine "
                "cannot score it: use --aq-engine modelopt"
            )
        return source

    def _write(
        self, buffers: dict[str, torch.Tensor], name: str, rows: slice, values: torch.Tensor
    ) -> None:
        if name not in buffers:
            pinned = self._device.type == "cpu" and values.is_cuda
            shape = (self._tokens, values.shape[-1])
            buffers[name] = torch.empty(
                shape, dtype=values.dtype, device=self._device, pin_memory=pinned
            )
        flat = values.detach().reshape(-1, values.shape[-1])
        buffers[name][rows].copy_(flat, non_blocking=True)
