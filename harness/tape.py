"""The tape: what passed through every language-model linear, for replaying each one alone.

Per linear the inputs X and the gradients G of its output, over the tokens of the scored captions,
and per input channel the largest |X| over all calibration tokens. Linears that read the same tensor
(q/k/v, gate/up) share one X. The model is only hooked while captions run through it, never changed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.captions import Batch, CalibrationData
from harness.errors import MeasurementError
from harness.loss import next_token_logits, next_token_loss
from harness.model import LoadedModel
from harness.progress import Progress

TAPE_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a tape was captured from; a tape of anything else is refused."""

    format: int
    model: str
    dtype: str
    captions: str
    tokens: str
    batch_size: int
    num_scored: int
    torch: str
    transformers: str

    @property
    def digest(self) -> str:
        """Short name for files: tapes of different things lie side by side."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    """Recorded inputs and output gradients.

    Attributes:
        source: by linear, the linear whose input it shares (itself, if none).
        inputs: by source, ``(tokens, in_features)``.
        amax: by source, ``(in_features,)``: largest |X| over all calibration tokens.
        gradients: by linear, ``(tokens, out_features)``.
        broken: linears whose gradients are not finite.
    """

    fingerprint: Fingerprint
    source: Mapping[str, str]
    inputs: Mapping[str, torch.Tensor]
    amax: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]
    broken: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the tape occupies."""
        parts = (self.inputs, self.amax, self.gradients)
        return sum(t.nbytes for part in parts for t in part.values())


def tape_fingerprint(model: LoadedModel, data: CalibrationData) -> Fingerprint:
    """Return the fingerprint of the tape that ``capture`` would make."""
    import transformers

    rows = [batch.rows for batch in data.batches]
    return Fingerprint(
        format=TAPE_FORMAT,
        model=model.record.digest,
        dtype=model.record.dtype,
        captions=data.sha256,
        tokens=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        batch_size=data.batch_size,
        num_scored=sum(len(batch.rows) for batch in data.scored),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def estimate_bytes(model: LoadedModel, data: CalibrationData) -> int:
    """Return an upper bound of a tape's size in bytes: as if no input were shared."""
    tokens = sum(batch.num_tokens for batch in data.scored)
    width = sum(linear.in_features + linear.out_features for linear in model.linears)
    itemsize: int = next(model.module.parameters()).element_size()
    return tokens * width * itemsize


def choose_device(wanted: str, model: LoadedModel, data: CalibrationData) -> torch.device:
    """Return where the tape lives: the model's device if half of its free memory holds it."""
    if model.device.type == "cpu" or wanted == "cpu":
        return torch.device("cpu")
    if wanted == "cuda":
        return model.device
    free, _ = torch.cuda.mem_get_info(model.device)
    return model.device if estimate_bytes(model, data) < free // 2 else torch.device("cpu")


def capture(
    model: LoadedModel, data: CalibrationData, device: torch.device, progress: Progress
) -> Tape:
    """Run every caption forward, the scored ones also backward, and record.

    Args:
        device: where the tape is kept; host memory is pinned when the model is on CUDA.

    Raises:
        MeasurementError: a linear of the language model never ran.
    """
    recorder = _Recorder(model, data, device)
    with recorder.attached():
        for done, batch in enumerate(data.scored):
            progress("capture", done, len(data.batches))
            recorder.scored(batch)
        for done, batch in enumerate(data.unscored, start=len(data.scored)):
            progress("capture", done, len(data.batches))
            recorder.unscored(batch)
    return recorder.finish(tape_fingerprint(model, data))


def save_tape(tape: Tape, path: Path) -> None:
    """Write a tape as safetensors, its fingerprint in the header."""
    from safetensors.torch import save_file

    parts = {"input": tape.inputs, "amax": tape.amax, "gradient": tape.gradients}
    tensors = {
        f"{kind}/{name}": tensor.contiguous()
        for kind, part in parts.items()
        for name, tensor in part.items()
    }
    header = {
        "fingerprint": json.dumps(asdict(tape.fingerprint)),
        "source": json.dumps(dict(tape.source)),
        "broken": json.dumps(tape.broken),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tape-") as folder:
        temporary = Path(folder) / path.name
        save_file(tensors, temporary, metadata=header)
        temporary.replace(path)


def load_tape(path: Path, wanted: Fingerprint, device: torch.device) -> Tape:
    """Read a tape.

    Raises:
        MeasurementError: no tape, or one captured from another model, captions or version; the
            message names the fields that differ.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as stored:
            header = stored.metadata() or {}
            found = json.loads(header["fingerprint"])
            _refuse_other(path, found, asdict(wanted))
            parts: dict[str, dict[str, torch.Tensor]] = {"input": {}, "amax": {}, "gradient": {}}
            for key in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                kind, _, name = key.partition("/")
                parts[kind][name] = stored.get_tensor(key)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MeasurementError(
            f"tape {path}: is not a tape of this version: {error}; delete it to capture anew"
        ) from error
    return Tape(
        fingerprint=wanted,
        source=json.loads(header["source"]),
        inputs=parts["input"],
        amax=parts["amax"],
        gradients=parts["gradient"],
        broken=tuple(json.loads(header["broken"])),
    )


def _refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        details = ", ".join(
            f"{name} {str(found.get(name))[:16]} instead of {str(wanted[name])[:16]}"
            for name in differing
        )
        raise MeasurementError(
            f"tape {path}: was captured from something else ({details}); delete it to capture anew"
        )


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

    def finish(self, fingerprint: Fingerprint) -> Tape:
        """Return what was recorded."""
        silent = [x.name for x in self._model.linears if x.name not in self._gradients]
        if silent:
            raise MeasurementError(
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
            raise MeasurementError(
                f"{name} runs several times per forward; the replay engine cannot score it: use "
                "--aq-engine modelopt"
            )
        if x.shape[:-1].numel() != self._batch_tokens:
            raise MeasurementError(
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
            raise MeasurementError(
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
